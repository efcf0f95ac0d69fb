"""Checkpoints: one file a save for the whole job, written whole or not at all, read without trust.

A file is a magic number, a format version, a SHA-256 over all the rest, and what `torch.save`
wrote. It is read as data alone: no pickle of a stranger is ever executed, nor given more memory
than twice the file's size. `torch.load(weights_only=True)` is not used, since it believes the sizes
that it reads. Then `common.plain_pickle.check` compares what came out with RUN.
"""

import contextlib
import errno
import hashlib
import io
import itertools
import math
import os
import random
import re
import signal
import stat
import struct
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common import logger
from common.files import replacing
from common.mpi import MPI
from common.plain_pickle import (
    ANY_NAME,
    COUNT,
    DEPTH,
    DICT,
    FINITE,
    FLAG,
    NUMBER,
    SETTING,
    TEXT,
    BoundedFile,
    Is,
    PlainUnpickler,
    Refused,
    check,
    zip_members,
)

MAGIC = b"ppo1 checkpoint\n"
FORMAT = 1
HEADER = struct.Struct(f"{len(MAGIC)}sI32s")  # magic, format, digest
NAME = re.compile(r"iteration-\d{9}\.ckpt")
BYTES = "bytes of ppo1"  # the one key of the dict that stands for a bytes object
NO_FILE = (errno.EIO, errno.ENOENT, errno.EISDIR)  # of which no second try will read more
BIT_GENERATORS = ("PCG64", "PCG64DXSM", "MT19937", "Philox", "SFC64")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
# What torch's storages and dtypes are called in a file, and their elements. Other dtypes are of an
# UntypedStorage.
STORAGES = {
    "torch.BoolStorage": "?", "torch.ByteStorage": "u1", "torch.CharStorage": "i1",
    "torch.ShortStorage": "i2", "torch.IntStorage": "i4", "torch.LongStorage": "i8",
    "torch.HalfStorage": "f2", "torch.FloatStorage": "f4", "torch.DoubleStorage": "f8",
    "torch.storage.UntypedStorage": "u1",
    "torch.uint16": "u2", "torch.uint32": "u4", "torch.uint64": "u8",
}  # fmt: skip

WEIGHTS = Is(
    "a vector of finite float32 numbers",
    lambda x: FINITE.holds(x) and x.dtype == np.float32 and x.ndim == 1,
)
NUMBERS = Is(
    "numbers",
    lambda x: FINITE.holds(x) or NUMBER.holds(x) or isinstance(x, list),
)
# What both `--resume` and `--load-path` read of a run.
LEARNED = {
    "theta": WEIGHTS,
    "ob_rms?": {"runningsum": FINITE, "runningsumsq": FINITE, "count": FINITE},
}
# How long a rank's logs were
LOG_LINES = {"progress.csv?": COUNT, "progress.json?": COUNT}
LENGTHS = {"monitor_rows": COUNT, "log_bytes": COUNT, "log_lines?": LOG_LINES}
# What a run's checkpoint holds, as far as anybody relies on it.
RUN = {
    "arguments": {ANY_NAME: SETTING},
    "shared": {
        **LEARNED,
        **dict.fromkeys(["iters_so_far", "timesteps_so_far", "episodes_so_far"], COUNT),
        "frames_so_far?": COUNT,
        **dict.fromkeys(["lenbuffer", "rewbuffer", "truelenbuffer", "truerewbuffer"], [NUMBER]),
        "time_elapsed": NUMBER,
        "adam_m": WEIGHTS,
        "adam_v": WEIGHTS,
        "adam_t": COUNT,
        "shapes": [[COUNT]],
        "log_lines": LOG_LINES,
    },
    "ranks": [
        {
            "random": DICT,  # tried on generators
            "env?": {"id": SETTING, "layers": [TEXT], "states": [DICT]},
            **LENGTHS,
            "carry?": {
                **dict.fromkeys(["ob", "ac", "prevac"], NUMBERS),
                "new": FLAG,
                "vpred": NUMBER,
                "cur_ep_ret": NUMBER,
                "cur_ep_len": COUNT,
            },
        }
    ],
    "former_ranks?": [LENGTHS],
    "policy?": {"ob_space": {"shape?": [COUNT]}},
    **dict.fromkeys(["versions?", "code?", "machine?"], {ANY_NAME: TEXT}),
}


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
    with replacing(path) as file:
        file.write(HEADER.pack(MAGIC, FORMAT, digest))
        file.write(payload)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what `write_checkpoint` was given, arrays as NumPy arrays, tuples as lists.

    Raises:
        CheckpointError: if the file is missing, cut, altered, of another format, or not plain data.
            With a MemoryError as its cause, the file may be good.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode) and not path.is_dir():
            raise CheckpointError(f"cannot read checkpoint {path}: it is no regular file")
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
            if not header.startswith(MAGIC) or len(header) < HEADER.size:
                raise CheckpointError(f"{path} is not a checkpoint")
            payload = file.read()
        _, version, digest = HEADER.unpack(header)
        hashed = hashlib.sha256(MAGIC + struct.pack("I", version))
        hashed.update(payload)
        if hashed.digest() != digest:
            raise CheckpointError(f"{path} is damaged: its checksum does not match")
        if version != FORMAT:
            raise CheckpointError(
                f"checkpoint {path} has format {version}; this program reads {FORMAT}"
            )
        content = _read_payload(payload)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from error
    except MemoryError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: not enough memory") from error
    except Exception as error:
        raise CheckpointError(f"checkpoint {path} holds something else than plain data") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"checkpoint {path} holds no run")
    return content


def _read_payload(payload: bytes) -> Any:
    """Return what `to_plain` was given before `torch.save` wrote it."""
    archive = memoryview(payload)
    members = {}
    for info in zip_members(io.BytesIO(payload), len(payload)):
        if info.compress_type != zipfile.ZIP_STORED:
            raise Refused("is compressed")
        name_size, extra_size = struct.unpack_from("<HH", payload, info.header_offset + 26)
        start = info.header_offset + 30 + name_size + extra_size
        name = info.filename.partition("/")[2]
        members[name] = archive[start : start + info.file_size]
    if bytes(members["byteorder"]) != sys.byteorder.encode():
        raise Refused("is of a machine with another byte order")

    left = len(payload)

    def storage(pid: Any) -> NDArray[Any]:
        _, dtype, name, _, _ = pid
        return np.frombuffer(members[f"data/{name}"], dtype)

    def tensor(
        stored: Any, offset: int, shape: Any, stride: Any, _: Any, __: Any, dtype: Any = None
    ) -> NDArray[Any]:
        """Return a copy of a tensor, which must lie in its storage as an array does in memory."""
        flat = stored.view(stored.dtype if dtype is None else dtype)
        if len(shape) > 32 or min(shape, default=0) < 0:
            raise Refused("holds a tensor that is no array")
        steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        size = math.prod(shape)
        if size and any(n > 1 and s != t for n, s, t in zip(shape, stride, steps, strict=True)):
            raise Refused("holds a tensor that is no array")
        nonlocal left
        left -= size * flat.itemsize
        if left < 0:
            raise Refused("holds tensors larger than itself")
        return flat[offset : offset + size].reshape(shape).copy()

    names = {
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor,
        "collections.OrderedDict": lambda: None,
        **STORAGES,
    }
    pickled = members["data.pkl"]
    file = BoundedFile(io.BytesIO(pickled), len(pickled), "ends too early")
    return from_plain(PlainUnpickler(file, names, storage).load(), limit=len(payload))


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


def from_plain(value: Any, *, limit: float = math.inf) -> Any:
    """Return `value` with tensors as arrays, and those that were bytes as bytes.

    Args:
        value: plain data, as `to_plain` returns it.
        limit: of its bytes, and of its parts: whoever copies it meets each as often as it occurs.

    Raises:
        Refused: for anything else, and for what is larger or too deep.
    """
    left = limit

    def convert(value: Any, depth: int) -> Any:
        nonlocal left
        value = value.numpy() if isinstance(value, torch.Tensor) else value
        left -= value.nbytes if isinstance(value, np.ndarray) else 1
        if left < 0 or depth > DEPTH:
            raise Refused("is larger than itself, or too deep")
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            if value.keys() == {BYTES}:
                return convert(value[BYTES], depth + 1).tobytes()
            return {key: convert(item, depth + 1) for key, item in value.items()}
        if isinstance(value, list):
            return [convert(item, depth + 1) for item in value]
        if value is None or isinstance(value, str | int | float | np.ndarray):
            return value
        raise Refused(f"holds a {type(value).__name__}")

    return convert(value, 0)


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


def read_newest(
    folder: Path, read: Callable[[Path], dict[str, Any]] = read_checkpoint
) -> tuple[Path, dict[str, Any]]:
    """Return the newest good checkpoint in `folder` and its content; a bad one is passed over.

    Args:
        folder: of the checkpoints.
        read: returns a checkpoint's content, or raises CheckpointError.

    Raises:
        CheckpointError: if there is none, or one may be good and cannot be read just now.
    """
    problems: list[str] = []
    for path in checkpoint_files(folder):
        try:
            content = read(path)
        except CheckpointError as error:
            if isinstance(error.__cause__, MemoryError) or (
                isinstance(error.__cause__, OSError) and error.__cause__.errno not in NO_FILE
            ):
                raise
            problems.append(str(error))
            continue
        for problem in problems:
            logger.log(f"{problem}; going back to {path.name}")
        return path, content
    if problems:
        raise CheckpointError(f"no good checkpoint in {folder}: {problems[0]}")
    raise CheckpointError(f"no checkpoint in {folder}")


def tidy_checkpoints(folder: Path, iteration: int) -> list[str]:
    """Make `iteration` the newest in `folder`, whose run goes on from there.

    Files of later iterations, damaged or of a future that will not be, would pass for the run's
    newest: they are set aside under names that no loader looks for. What a save that was killed
    has left is removed.

    Returns:
        the names of the files that were set aside, the oldest first.

    Raises:
        OSError: if that fails.
    """
    for path in folder.glob(".iteration-*.partial"):
        path.unlink()
    later = [path for path in checkpoint_files(folder) if path.name > checkpoint_name(iteration)]
    for path in later:
        names = itertools.chain([".set-aside"], (f".set-aside-{n}" for n in itertools.count(2)))
        path.rename(next(x for n in names if not os.path.lexists(x := path.with_suffix(n))))
    return [path.name for path in reversed(later)]


def read_run(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return a run's folder, and the content of its newest good checkpoint.

    Args:
        path: the run's folder, its folder of checkpoints, or one checkpoint, which is then read.

    Raises:
        CheckpointError: if there is none.
    """
    folder_of_run = run_folder(path)
    if path.is_dir():
        folder = path if checkpoint_files(path) else path / "checkpoints"
        _, content = read_newest(folder, _read_run)
    else:
        content = _read_run(path)
    return folder_of_run, content


def run_folder(path: Path) -> Path:
    """Return the folder of the run that `path` means, symbolic links followed.

    Args:
        path: as for `read_run`.
    """
    path = Path(os.path.abspath(path))  # of "." the parent has no name
    is_folder = path.is_dir()
    if is_folder and not checkpoint_files(path):
        return path.resolve()
    folder = path if is_folder else path.parent
    if folder.name != "checkpoints":  # a link may stand for it, or for a checkpoint
        folder = path.resolve() if is_folder else path.resolve().parent
    return (folder.parent if folder.name == "checkpoints" else folder).resolve()


def _read_run(path: Path) -> dict[str, Any]:
    """Return a checkpoint's content, which is one of RUN.

    Raises:
        CheckpointError: if it is not, naming what differs.
    """
    content = read_checkpoint(path)
    try:
        check(content, RUN)
        shared = content["shared"]
        sizes = [len(shared[name]) for name in ("theta", "adam_m", "adam_v")]
        sizes.append(sum(map(math.prod, shared["shapes"])))
        if len(set(sizes)) > 1:
            raise Refused(f"theta, adam_m, adam_v and shapes are of {sizes} weights")
        if not content["ranks"]:
            raise Refused("ranks is empty")
        for own in content["ranks"]:
            own.setdefault("env", None)
            _check_random(own["random"])
    except Refused as error:
        raise CheckpointError(f"{path} holds no run: {error}") from None
    return content


def _check_random(states: dict[str, Any]) -> None:
    """Raise Refused for states that Python's, NumPy's and torch's generators do not take."""
    try:
        if not 0 <= states["numpy"]["state"]["pos"] <= 624:  # NumPy would read beyond its memory
            raise ValueError("pos is out of range")
        np.random.RandomState().set_state(states["numpy"])
        version, internal, gauss_next = states["python"]
        random.Random().setstate((version, tuple(internal), gauss_next))
        torch.Generator().set_state(torch.as_tensor(states["torch"]))
        policy = states.get("policy", {})
        if policy.get("bit_generator") in BIT_GENERATORS:
            getattr(np.random, policy["bit_generator"])().state = policy
    except Exception as error:  # each has its own ways to say so
        raise Refused(f"a generator's state is none: {error}"[:200]) from None


# ---- Saving while a run goes on -----------------------------------------------------------------


class Checkpointer:
    """A callback for `learn` that saves every so many iterations, at the end, and on a signal.

    A signal (TERM, INT, USR1, HUP) to any rank stops all of them at the next iteration's start,
    saved. HUP does not where it is ignored, as under nohup.
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
        """Take over the signals, which Python gives to the main thread alone.

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
        self.previous_handlers: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if not (number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
                    self.previous_handlers[number] = signal.signal(number, self._note)
        else:
            logger.warn(
                "WARNING: a signal will not stop and save this run: it is not in the program's "
                "main thread"
            )

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
