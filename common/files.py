"""Where a run's files are, and how they are written without harm to files of others.

Every path that a user gives goes through `absolute_path`, or `folder_path` for a run's folder,
once, where it is given. Nothing later depends on the working directory, which an environment may
change. (`user_path` alone suffices where no environment runs.)
"""

import argparse
import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Self


class PathError(argparse.ArgumentTypeError, ValueError):
    """A path that cannot be used; argparse shows the message, which is one line."""


def user_path(path: str | os.PathLike[str]) -> str:
    """Return a path, `~` replaced by the home folder.

    Raises:
        PathError: for an empty path, one that is no text, and a `~user` who does not exist.
    """
    path = os.fspath(path)
    try:
        path.encode()
        os.fsencode(path)  # which another locale's encoding may refuse
    except UnicodeError as error:
        raise PathError(f"need a path that is text, got {ascii(path)}") from error
    expanded = os.path.expanduser(path)
    if not path or "\0" in path:
        raise PathError(f"need a path, got {path!r}")
    if expanded.startswith("~"):
        raise PathError(f"no home folder for {path!r}; a name that starts with ~ is ./{path}")
    return expanded


def absolute_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a file or folder. Raises as `user_path` does."""
    return os.path.abspath(user_path(path))


def folder_path(path: str | os.PathLike[str]) -> str:
    """Return the absolute path of a run's folder, symbolic links followed.

    A link that is pointed elsewhere later would split the run. Raises as `user_path` does.
    """
    return os.path.realpath(absolute_path(path))


def no_link(path: str, flags: int) -> int:
    """Open a file, but not through a symbolic link: the `opener` for files in a run's folder.

    Raises:
        OSError: as `os.open`, and for a link, which may lead to somebody else's file.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        text = "a symbolic link, through which no run writes"
        raise OSError(error.errno, text, path) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path`, synced, when the block ends.

    After an exception, `path` is as it was. A link is replaced itself, not what it leads to.

    Raises:
        OSError: if the file cannot be written, or `path` is a device, a pipe or a folder.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        partial.unlink(missing_ok=True)


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder, rather than a symbolic link to one."""
    return path.is_dir() and not path.is_symlink()


def set_aside(folder: Path, names: Iterable[str]) -> Path | None:
    """Move what a folder has under these names to a new folder `earlier-N` in it.

    Links are moved themselves, not what they lead to. If one cannot be moved, all stay.

    Returns:
        the new folder; None if there is nothing of these names.
    """
    names = [name for name in names if os.path.lexists(folder / name)]
    if not names:
        return None
    for number in itertools.count(1):
        earlier = folder / f"earlier-{number}"
        with contextlib.suppress(FileExistsError):
            earlier.mkdir()
            break
    moved = []
    try:
        for name in names:
            os.rename(folder / name, earlier / name)
            moved.append(name)
    except OSError:
        for name in moved:
            os.rename(earlier / name, folder / name)
        earlier.rmdir()
        raise
    return earlier


_locks: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _release_all() -> None:
    for lock in _locks:
        lock.release()


os.register_at_fork(after_in_child=_release_all)


class FolderLock:
    """A run's hold on its folder, against other runs; given up on leaving a `with` block.

    It ends with the process at the latest. A forked child does not inherit it: a worker that
    outlives its run must not keep the next one out.
    """

    NAME = ".lock"

    def __init__(self) -> None:
        """Hold nothing yet."""
        self.descriptor: int | None = None
        _locks.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def take(
        self,
        folder: Path,
        *,
        wait_seconds: float = 0.0,
        say: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Make the folder if needed, and lock it, unless this lock is held already.

        Args:
            folder: the run's.
            wait_seconds: how long another run there has to end.
            say: told that this waits, and of a file system without locks.

        Raises:
            ValueError: if another run still has it.
            OSError: if nothing can be written there.
        """
        if self.descriptor is not None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = no_link(str(folder / self.NAME), os.O_CREAT | os.O_RDWR)
        except OSError as error:
            text = f"cannot write logs: {error.strerror}"
            raise OSError(error.errno, text, error.filename) from error
        deadline = time.monotonic() + wait_seconds
        waits = False
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    os.close(descriptor)
                    raise ValueError(f"another run is writing to {str(folder)!r}") from None
                if not waits:
                    say(f"Another run is writing to {folder}: {wait_seconds:.0f} s for it to end")
                waits = True
                time.sleep(0.1)
            except OSError as error:
                say(f"WARNING: cannot lock {folder}, so let no other run write there: {error}")
                break
        self.descriptor = descriptor

    @classmethod
    def is_held(cls, folder: Path) -> bool:
        """Return whether a run holds a folder."""
        try:
            descriptor = no_link(str(folder / cls.NAME), os.O_RDONLY)
        except OSError:  # no run has been there
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # of a file system without locks
            return False
        finally:
            os.close(descriptor)
        return False

    def release(self) -> None:
        """Give it up, if it is held."""
        if self.descriptor is not None:
            with contextlib.suppress(OSError):  # an environment may have closed all files
                os.close(self.descriptor)  # LOCK_UN in a forked child would end the parent's
        self.descriptor = None


def printable(text: str, stream: Any) -> str:
    """Return `text`, with escapes for what the stream's encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
