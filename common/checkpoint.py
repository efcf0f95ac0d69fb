"""Checkpoints: one file a save for the whole job, written whole or not at all, read without trust.

A file is a magic number, a format version, a SHA-256 over all the rest, and what `torch.save`
wrote. `torch.load(weights_only=True)` reads it: no pickle of a stranger is ever executed.
"""

import contextlib
import hashlib
import io
import os
import re
import signal
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from mpi4py import MPI

from common import logger

MAGIC = b"ppo1 checkpoint\n"
FORMAT = 1
HEADER = struct.Struct(f"{len(MAGIC)}sI32s")  # magic, format, digest
NAME = re.compile(r"iteration-\d{9}\.ckpt")
BYTES = "bytes of ppo1"  # the one key of the dict that stands for a bytes object
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class CheckpointError(ValueError):
    """A file that is no checkpoint, or not one for this run; the message is one line."""


class StopRequested(Exception):
    """Raised on all ranks together, after a save, once any rank has had a signal."""

    def __init__(self, signum: int, *, saved: bool) -> None:
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name}, {'and saved' if saved else 'but NOT saved'}")
        self.signum = signum


# ---- Files --------------------------------------------------------------------------------------


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` to `path`: under another name first, then synced, then renamed.

    Args:
        path: of the file; its folder is made if needed.
        content: of dicts, lists, tuples, numbers, strings, bytes, None, NumPy arrays and tensors.

    Raises:
        OSError: if that fails; a file that was there before is as it was.
    """
    buffer = io.BytesIO()
    torch.save(to_plain(content), buffer)
    payload = buffer.getvalue()
    digest = hashlib.sha256(MAGIC + struct.pack("I", FORMAT) + payload).digest()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(HEADER.pack(MAGIC, FORMAT, digest))
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `write_checkpoint` was given, arrays as NumPy arrays, tuples as lists.

    Raises:
        CheckpointError: if the file is missing, cut, altered, of another format, or not plain data.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
    if not data.startswith(MAGIC) or len(data) < HEADER.size:
        raise CheckpointError(f"{path} is not a checkpoint")
    _, version, digest = HEADER.unpack(data[: HEADER.size])
    payload = data[HEADER.size :]
    if hashlib.sha256(MAGIC + struct.pack("I", version) + payload).digest() != digest:
        raise CheckpointError(f"checkpoint {path} is damaged: its checksum does not hold")
    if version != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} has format {version}; this program reads {FORMAT}"
        )
    try:
        content = from_plain(torch.load(io.BytesIO(payload), weights_only=True))
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} holds something else than plain data") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds no run")
    return content


def to_plain(value: Any) -> Any:
    """Return `value` with arrays and bytes as tensors, and other containers as lists."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        native = value.astype(value.dtype.newbyteorder("="), order="C")
        return torch.from_numpy(native)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {BYTES: torch.from_numpy(np.frombuffer(value, np.uint8).copy())}
    if value is None or isinstance(value, str | int | float | torch.Tensor):
        return value
    if isinstance(value, Iterable):
        return [to_plain(item) for item in value]
    raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """Return `value` with tensors as arrays, and those that were bytes as bytes."""
    if isinstance(value, dict):
        if value.keys() == {BYTES}:
            return value[BYTES].numpy().tobytes()
        return {key: from_plain(item) for key, item in value.items()}
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, list):
        return [from_plain(item) for item in value]
    return value


def checkpoint_name(iteration: int) -> str:
    """Return the name of the file that is saved before `iteration`."""
    return f"iteration-{iteration:09d}.ckpt"


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, the newest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [folder / name for name in sorted(filter(NAME.fullmatch, names), reverse=True)]


def read_newest(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Return the newest good checkpoint in `folder` and its content; a bad one is passed over.

    Raises:
        CheckpointError: if there is none.
    """
    problems: list[str] = []
    for path in checkpoint_files(folder):
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            logger.log(f"{problem}; going back to {path.name}")
        return path, content
    if problems:
        raise CheckpointError(f"no good checkpoint in {folder}: {problems[0]}")
    raise CheckpointError(f"no checkpoint in {folder}")


def tidy_checkpoints(folder: Path, iteration: int) -> None:
    """Make `iteration` the newest in `folder`, whose run goes on from there.

    Files of later iterations, damaged or of a future that will not be, would pass for the run's
    newest: they are set aside under names that no loader looks for. What a save that was killed
    has left is removed.

    Raises:
        OSError: if that fails.
    """
    for path in folder.glob(".iteration-*.partial"):
        path.unlink()
    for path in checkpoint_files(folder):
        if path.name > checkpoint_name(iteration):
            path.rename(path.with_suffix(".set-aside"))
            logger.log(f"Set aside {path.name}, which is later than where the run goes on")


def read_run(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run's folder, and the content of its newest good checkpoint.

    Args:
        path: the run's folder, its folder of checkpoints, or one checkpoint, which is then read.

    Raises:
        CheckpointError: if there is none.
    """
    if path.is_dir():
        path, content = read_newest(path if checkpoint_files(path) else path / "checkpoints")
    else:
        content = read_checkpoint(path)
    if not {"arguments", "shared", "ranks"} <= content.keys():
        raise CheckpointError(f"{path} holds no run")
    path = Path(os.path.abspath(path))  # of "." the parent has no name
    return path.parents[1 if path.parent.name == "checkpoints" else 0], content


# ---- Saving while a run goes on -----------------------------------------------------------------


class Checkpointer:
    """A callback for `learn` that saves every so many iterations, at the end, and on a signal.

    A signal (TERM, INT, USR1) to any rank stops all of them at the next iteration's start, saved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        interval: int,
        keep: int,
        collect: Callable[[dict[str, Any]], tuple[dict[str, Any], dict[str, Any]]],
        header: dict[str, Any],
        comm: MPI.Comm | None = None,
    ) -> None:
        """Take over the signals.

        Args:
            folder: of the checkpoints.
            interval: iterations from one save to the next; 0 saves at the end and on signals alone.
            keep: how many files to keep, at least 1.
            collect: returns, from `learn`'s locals, what all ranks share and this rank's own part.
            header: what else a file holds: arguments, versions and the like.
            comm: the ranks; None is COMM_WORLD.
        """
        self.folder, self.interval, self.keep = folder, interval, keep
        self.collect, self.header = collect, header
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.signum = 0
        self.last_saved: int | None = None  # or tried to
        self.is_saved = True  # that try's outcome
        self.local: dict[str, Any] = {}
        self.previous_handlers = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, signum: int, _: FrameType | None) -> None:
        # A second INT ends the process: somebody is in a hurry. Slurm repeats TERM as it pre-empts.
        if self.signum and signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
        self.signum = signum

    def __call__(self, local: dict[str, Any], _: dict[str, Any]) -> None:
        """Save if it is time to; called by `learn` at the top of each iteration.

        Collective: every rank must call it.

        Raises:
            StopRequested: on all ranks, if one has had a signal.
        """
        self.local = local
        iteration = local["iters_so_far"]
        if self.last_saved is None:
            self.last_saved = iteration  # where this process began
            to_plain(self.collect(local))  # raises now what no save could hold
        signum = self.comm.allreduce(self.signum, op=MPI.MAX)
        if signum or (self.interval and iteration - self.last_saved >= self.interval):
            self.save()
        if signum:
            raise StopRequested(signum, saved=self.is_saved)

    def save(self) -> None:
        """Save what `learn` last showed.

        A write that fails is a warning: training goes on, and the file before it stays.

        Collective: every rank must call it.
        """
        iteration = self.local["iters_so_far"]
        shared, own = self.collect(self.local)
        ranks = self.comm.gather(own)
        self.last_saved = iteration
        is_written = ranks is not None and self._write(
            checkpoint_name(iteration), {**self.header, "shared": shared, "ranks": ranks}
        )
        self.is_saved = self.comm.bcast(is_written)

    def _write(self, name: str, content: dict[str, Any]) -> bool:
        path = self.folder / name
        try:
            write_checkpoint(path, content)
        except OSError as error:
            logger.warn(f"WARNING: checkpoint {path} was not written: {error}")
            return False
        for old in checkpoint_files(self.folder)[self.keep :]:
            with contextlib.suppress(OSError):
                old.unlink()
        return True

    def close(self) -> None:
        """Give the signals back to those who handled them before."""
        for number, handler in self.previous_handlers.items():
            signal.signal(number, handler)
