"""Logging: values by name, written once an iteration in up to five formats, and lines of text.

Every rank has one current logger. Before `configure` it prints on rank 0 and writes nothing.

    logger.configure("runs/hopper", ["stdout", "csv"])
    logger.record_tabular("EpRewMean", 12.5)
    logger.dump_tabular()

Files, in the run's folder (rank 3's are `log-rank003.txt`, and so on):

    log            log.txt          the boxed tables and every line of text
    csv            progress.csv     a column per key; a key that first comes later adds a column
    json           progress.json    a JSON object per line
    tensorboard    tb/              an event file
    stdout                          the tables and text, on the console

A failed write never stops training: hours of learning are worth more than their log. If the disk
fills or the folder is deleted during a run, the first failure of each format is one warning on
stderr; later writes are tried all the same, and fail in silence or succeed. A block of lines that
could not be written whole is taken back, so that a file holds whole lines only. A folder that is
unwritable from the start is another matter: `configure` raises.

Source: baselines/logger.py @ ea25b9e

Differs:
    - A file of an earlier run is never overwritten: it moves to the folder's `earlier-N`.
    - The default folder is `runs/<time>` under the working directory, one for all ranks, not a
      temporary one per rank. Rank 0's folder counts, and one rank's failure raises on every rank.
    - `comm` names the ranks that share the folder; values are never averaged over it.
    - Unconfigured, nothing is written (baselines makes a folder on the first call).
    - Floats have full precision in CSV and JSON, also those that come as float32 arrays or tensors.
    - CSV fields are quoted where they must be; a column is added by writing a new file and
      renaming it.
    - Two keys that are equal after their cut to 30 characters both show in the table.
    - TensorBoard's step is TimestepsSoFar, and two `charts/` that CleanRL's tools read are added.
    - The console is whatever `sys.stdout` is at each write, so a redirection or a progress bar may
      replace it at any time.
    - `dumpkvs` without values, or at level DISABLED, writes nothing; `reset` prints nothing.
    - Level DETAIL, below INFO and written by default, is for the steps of an iteration.
    - `append` continues existing files. The readers are left to pandas (`read_csv`, `read_json`).
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import errno
import io
import json
import math
import numbers
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from common.files import PathError, folder_path, is_folder, no_link, printable, replacing, set_aside

if TYPE_CHECKING:
    from common.mpi import MPI

DEBUG = 10
DETAIL = 15  # the steps of an iteration
INFO = 20
WARN = 30
ERROR = 40
DISABLED = 50

# Names in the run's folder, by format; the rank and the caller's suffix stand in the braces.
FILES = {"log": "log{}.txt", "csv": "progress{}.csv", "json": "progress{}.json",
         "tensorboard": "tb{}"}  # fmt: skip
_TABLE_WIDTH = 30  # characters of a key or a value in the table


# ---------------------------------------------------------------- values and files


def _plain(value: Any) -> Any:
    """Return the Python number in a NumPy or torch scalar, lists for an array, others as given."""
    if not (hasattr(value, "item") and hasattr(value, "tolist")):
        return value
    try:
        return value.item()
    except (ValueError, RuntimeError):  # NumPy's and torch's word for more than one element
        return value.tolist()


def _number(value: Any) -> float | None:
    """Return the value as a float, or None if it is no real number."""
    value = _plain(value)
    return float(value) if isinstance(value, numbers.Real) else None


class _LineFile:
    """A text file that takes each block of lines whole or not at all.

    Unbuffered: a block is one system call, so that a process that dies leaves whole lines, and a
    failure shows at the write that caused it. With `append`, an existing file goes on after its
    last whole line (a computer that died may have left half a line); otherwise it starts empty.
    """

    def __init__(self, path: str | os.PathLike[str], append: bool) -> None:
        self.path = os.path.abspath(path)
        self._file = self._open()
        self._file.seek(0)
        content = self._file.readall() if append else b""
        if not append or not content.endswith(b"\n"):
            self._file.truncate(content.rfind(b"\n") + 1)

    def _open(self) -> io.FileIO:
        return open(self.path, "a+b", buffering=0, opener=no_link)

    def text(self) -> str:
        """Return all that the file holds."""
        self._file.seek(0)
        return self._file.readall().decode(errors="backslashreplace")

    def write(self, text: str) -> None:
        """Append `text`; if that fails, take back what was written of it and raise OSError."""
        if os.fstat(self._file.fileno()).st_nlink == 0:  # or the write would succeed, to nowhere
            raise FileNotFoundError(errno.ENOENT, "the file was deleted", self.path)
        end = self._file.seek(0, os.SEEK_END)
        rest = memoryview(text.encode(errors="backslashreplace"))
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
            raise

    def replace(self, text: str) -> None:
        """Make `text` the whole content; a failure or crash leaves the old or the new, unmixed."""
        with replacing(self.path) as file:
            file.write(text.encode(errors="backslashreplace"))
        fresh = self._open()
        self._file.close()
        self._file = fresh

    def flush(self) -> None:
        """Do nothing: no write waits in a buffer."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# ---------------------------------------------------------------- formats


class KVWriter:
    """A format that takes the values of an iteration."""

    name = "an output format"  # what a warning calls it

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one iteration's values."""
        raise NotImplementedError

    def close(self) -> None:
        """Release what the format holds."""


class SeqWriter:
    """A format that takes lines of text, those of at least its own level."""

    level = DEBUG

    def writeseq(self, seq: Iterable[Any]) -> None:
        """Write the items of `seq` as one line, a space between them."""
        raise NotImplementedError


class HumanOutputFormat(KVWriter, SeqWriter):
    """Boxed tables and lines of text, to a file or the console."""

    def __init__(
        self, filename_or_file: str | os.PathLike[str] | TextIO | None, append: bool = False
    ) -> None:
        """Open the file, if a path is given.

        Args:
            filename_or_file: a path, an open text file (it stays open), or None: the console,
                `sys.stdout` at each write.
            append: continue an existing file.
        """
        self.file: _LineFile | TextIO | None
        if isinstance(filename_or_file, (str, os.PathLike)):
            self.file = _LineFile(filename_or_file, append)
            self.name = self.file.path
        else:
            self.file = filename_or_file
            self.name = str(getattr(filename_or_file, "name", "stdout"))

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write a table."""
        if kvs:
            self._write(table_text(kvs))

    def writeseq(self, seq: Iterable[Any]) -> None:
        """Write one line."""
        self._write(" ".join(map(str, seq)) + "\n")

    def _write(self, text: str) -> None:
        out = sys.stdout if self.file is None else self.file
        if out is None:
            raise OSError(errno.EBADF, "there is no standard output")
        out.write(printable(text, out))
        out.flush()

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if isinstance(self.file, _LineFile):
            self.file.close()


def table_text(kvs: Mapping[str, Any]) -> str:
    """Return values as a boxed table, keys in alphabetical order without regard to case."""
    rows = [
        (_cut(key), _cut(_cell(value)))
        for key, value in sorted(kvs.items(), key=lambda item: item[0].lower())
    ]
    key_width = max(len(key) for key, _ in rows)
    value_width = max(len(value) for _, value in rows)
    dashes = "-" * (key_width + value_width + 7)
    table = [f"| {key:<{key_width}} | {value:<{value_width}} |" for key, value in rows]
    return "\n".join([dashes, *table, dashes]) + "\n"


def _cell(value: Any) -> str:
    """Return a value as a table shows it."""
    number = _number(value)
    return str(_plain(value)) if number is None else f"{number:<8.3g}"


def _cut(text: str) -> str:
    """Return the text, at most as wide as a table's cell."""
    return text if len(text) <= _TABLE_WIDTH else text[: _TABLE_WIDTH - 3] + "..."


class JSONOutputFormat(KVWriter):
    """A JSON object per line, with the NaN and Infinity that Python's `json` and pandas read."""

    def __init__(self, filename: str | os.PathLike[str], append: bool = False) -> None:
        """Open the file; with `append`, an existing one is continued."""
        self.file = _LineFile(filename, append)
        self.name = self.file.path

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one line."""
        plain = {key: _plain(value) for key, value in kvs.items()}
        self.file.write(json.dumps(plain, default=str) + "\n")

    def close(self) -> None:
        """Close the file."""
        self.file.close()


class CSVOutputFormat(KVWriter):
    """A header and a row per iteration.

    Columns stand in the order in which keys first came (those that came together, sorted). A key
    that first comes later adds a column: the file is written anew, rows so far with an empty field.
    Floats are Python's `repr`: the shortest text that gives the same bits back; NaN is `nan`.
    """

    def __init__(self, filename: str | os.PathLike[str], append: bool = False) -> None:
        """Open the file; with `append`, an existing one is continued under its own header."""
        self.file = _LineFile(filename, append)
        self.name = self.file.path
        self.keys: list[str] = next(_csv_rows(self.file.text()), [])

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one row."""
        new_keys = sorted(kvs.keys() - self.keys)
        keys = self.keys + new_keys
        row = [_csv_field(kvs.get(key)) for key in keys]
        if not self.keys:
            self.file.write(_csv_text([keys, row]))
        elif not new_keys:
            self.file.write(_csv_text([row]))
        else:
            _, *rows = _csv_rows(self.file.text())
            padded = [old + [""] * (len(keys) - len(old)) for old in rows]
            self.file.replace(_csv_text([keys, *padded, row]))
        self.keys = keys  # only now: a failed write has added no column

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def _csv_field(value: Any) -> str:
    """Return a value as a CSV field, before quoting; None is empty."""
    value = _plain(value)
    if value is None:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _csv_rows(text: str) -> Iterator[list[str]]:
    """Yield the rows of a CSV text, blank lines left out."""
    return (row for row in csv.reader(io.StringIO(text, newline="")) if row)


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as CSV text."""
    out = io.StringIO(newline="")
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


def scalars_of(kvs: Mapping[str, Any]) -> dict[str, float]:
    """Return the values that are numbers, and the two `charts/` by which CleanRL's tools know them.

    `charts/episodic_return` is EpTrueRewMean if it is finite, else EpRewMean if that is;
    `charts/SPS` is TimestepsPerSec.
    """
    scalars = {key: x for key, value in kvs.items() if (x := _number(value)) is not None}
    for key in ("EpRewMean", "EpTrueRewMean"):  # the later one wins
        if math.isfinite(scalars.get(key, math.nan)):
            scalars["charts/episodic_return"] = scalars[key]
    if "TimestepsPerSec" in scalars:
        scalars["charts/SPS"] = scalars["TimestepsPerSec"]
    return scalars


class TensorBoardOutputFormat(KVWriter):
    """Every number as a TensorBoard scalar, at step TimestepsSoFar (without it, the dump's number).

    What is not a number is left out; `scalars_of` says what is added. TensorBoard's own thread
    writes the file: when a write fails it prints its traceback too, and it stays off for the rest
    of the run.
    """

    def __init__(self, dir: str | os.PathLike[str], append: bool = False) -> None:
        """Make the folder; the event file follows with the first values.

        Args:
            dir: the folder.
            append: keep what an earlier run wrote there, and have TensorBoard hide those of its
                points that lie at or after the first step written now (a resumed run repeats
                them). Otherwise its event files move to `earlier-N` in that folder.

        Raises:
            ImportError: the tensorboard package is missing.
            OSError: the folder is a symbolic link, or cannot be made.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.dir = os.path.abspath(dir)
        self.name = self.dir
        os.makedirs(self.dir, exist_ok=True)
        os.close(no_link(self.dir, os.O_RDONLY))
        if not append:
            names = [name for name in os.listdir(self.dir) if name.startswith("events.out.")]
            set_aside(Path(self.dir), names)
        self._make_writer = SummaryWriter
        self._append = append
        self._writer: SummaryWriter | None = None
        self._dumps = 0

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Write one iteration's numbers."""
        if not os.path.isdir(self.dir):  # as in _LineFile.write
            raise FileNotFoundError(errno.ENOENT, "the folder was deleted", self.dir)
        scalars = scalars_of(kvs)
        self._dumps += 1
        timesteps = scalars.get("TimestepsSoFar", math.nan)
        has_timesteps = math.isfinite(timesteps)
        step = int(timesteps) if has_timesteps else self._dumps
        if self._writer is None:
            purge_step = step if self._append and has_timesteps else None
            self._writer = self._make_writer(self.dir, purge_step=purge_step)
        for key, x in scalars.items():
            self._writer.add_scalar(key, x, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def make_output_format(
    format: str, ev_dir: str | os.PathLike[str], log_suffix: str = "", append: bool = False
) -> KVWriter:
    """Return the format of that name, its file open in the folder `ev_dir`, made if needed.

    Args:
        format: stdout, log, csv, json or tensorboard.
        ev_dir: the run's folder.
        log_suffix: goes into the file's name before its extension, e.g. "-rank001".
        append: continue an existing file instead of emptying it.

    Raises:
        ValueError: the format is unknown.
        OSError: the file cannot be opened.
    """
    if format == "stdout":
        return HumanOutputFormat(None)
    if format not in FILES:
        raise ValueError(f"unknown log format {format!r}: choose from stdout, {', '.join(FILES)}")
    make: dict[str, Callable[[str, bool], KVWriter]] = {
        "log": HumanOutputFormat,
        "csv": CSVOutputFormat,
        "json": JSONOutputFormat,
        "tensorboard": TensorBoardOutputFormat,
    }
    os.makedirs(ev_dir, exist_ok=True)
    return make[format](os.path.join(ev_dir, FILES[format].format(log_suffix)), append)


# ---------------------------------------------------------------- the logger


class Logger:
    """The values of the running iteration, and the formats that they go to."""

    CURRENT: ClassVar[Logger | None] = None  # None: not configured, and nothing logged yet

    def __init__(
        self,
        dir: str | None,
        output_formats: Sequence[KVWriter],
        *,
        rank: int = 0,
        append: bool = False,
    ) -> None:
        """Make a logger at level DETAIL.

        Args:
            dir: the run's folder, or None.
            output_formats: where values go, and text, to those that are a `SeqWriter` too.
            rank: named in warnings.
            append: whether the folder's files are those of an earlier run.
        """
        self.dir = dir
        self.append = append
        self.output_formats = list(output_formats)
        self.rank = rank
        self.level = DETAIL
        self.name2val: dict[str, Any] = {}
        self.name2cnt: dict[str, int] = {}
        self._failed: set[int] = set()  # positions of the formats that have had their warning

    def logkv(self, key: str, val: Any) -> None:
        """Set a value; the last one of an iteration counts."""
        self.name2val[key] = val
        self.name2cnt.pop(key, None)

    def logkv_mean(self, key: str, val: Any) -> None:
        """Take a value into the mean of those given since the last dump."""
        count = self.name2cnt.get(key, 0) + 1
        mean = self.name2val[key] if count > 1 else 0.0
        self.name2val[key] = mean + (val - mean) / count
        self.name2cnt[key] = count

    def dumpkvs(self) -> dict[str, Any]:
        """Write the values to every format, forgets them, and returns them."""
        kvs = dict(self.name2val)
        self.name2val.clear()
        self.name2cnt.clear()
        if kvs and self.level < DISABLED:
            self._each(lambda fmt: fmt.writekvs(kvs))
        return kvs

    def log(self, *args: Any, level: int = INFO) -> None:
        """Write one line of text, if `level` is at least the logger's."""
        if self.level <= level and self.level < DISABLED:

            def write(fmt: KVWriter) -> None:
                if isinstance(fmt, SeqWriter) and level >= fmt.level:
                    fmt.writeseq(args)

            self._each(write)

    def close(self) -> None:
        """Close every format."""
        self._each(lambda fmt: fmt.close())

    def _each(self, write: Callable[[KVWriter], None]) -> None:
        """Call `write` on every format; a format's first failure is a warning, the rest pass.

        Whatever fails: a disk, a console that is closed or None, the thread of a writer.
        """
        for i, fmt in enumerate(self.output_formats):
            try:
                write(fmt)
            except Exception as err:
                if i in self._failed:
                    continue
                self._failed.add(i)
                with contextlib.suppress(Exception):  # stderr may be closed, too
                    sys.stderr.write(
                        f"WARNING: rank {self.rank} could not write its log to {fmt.name}: "
                        f"{str(err) or repr(err)}. "
                        "Training goes on; further failures there are not reported.\n"
                    )
                    sys.stderr.flush()


def get_current() -> Logger:
    """Return this rank's logger: the configured one, else one that prints, on rank 0 alone."""
    if Logger.CURRENT is None:
        rank = _world().Get_rank()
        Logger.CURRENT = Logger(None, [HumanOutputFormat(None)] if rank == 0 else [], rank=rank)
    return Logger.CURRENT


def _world() -> MPI.Comm:
    """Return all ranks. Imported here because the import starts MPI."""
    from common.mpi import MPI

    return MPI.COMM_WORLD


# ---------------------------------------------------------------- configuration


def configure(
    dir: str | os.PathLike[str] | None = None,
    format_strs: Sequence[str] | None = None,
    comm: MPI.Comm | None = None,
    log_suffix: str = "",
    *,
    append: bool = False,
) -> None:
    """Open the run's folder and files, and makes that the current logger; closes the one before.

    Collective: every rank of `comm`. All use rank 0's folder. A rank that cannot write there, or is
    given an unknown format, makes all of them raise the same exception.

    Args:
        dir: the run's folder, made if needed. None: the variable OPENAI_LOGDIR, else
            `runs/<time>` under the working directory. The other ranks' `dir` is ignored.
        format_strs: this rank's formats. None: the comma-separated variable OPENAI_LOG_FORMAT on
            rank 0 (default "stdout,log,csv"), OPENAI_LOG_FORMAT_MPI on the others ("log").
        comm: the ranks that share the folder; None means COMM_WORLD.
        log_suffix: added to the names of the files, before the extension.
        append: continue the files in the folder. Otherwise those that are in the way move to a
            new subfolder `earlier-N`.

    Raises:
        OSError: some rank cannot make the folder or write in it; the message has the path.
        ValueError: some rank was given a format that does not exist, or rank 0 a path that is no
            text.
        ImportError: tensorboard was asked for and is not installed.
    """
    new, earlier = _open_logger(dir, format_strs, comm, append, log_suffix)
    old, Logger.CURRENT = Logger.CURRENT, new
    if old is not None:
        old.close()
    new.log(f"Logging to {new.dir}")
    if earlier is not None:
        new.log(f"The logs that were there are now in {earlier}")


def reset() -> None:
    """Close the current logger and goes back to the unconfigured one."""
    if Logger.CURRENT is not None:
        Logger.CURRENT.close()
        Logger.CURRENT = None


@contextlib.contextmanager
def scoped_configure(
    dir: str | os.PathLike[str] | None = None,
    format_strs: Sequence[str] | None = None,
    comm: MPI.Comm | None = None,
) -> Iterator[None]:
    """Configure the logger for a `with` block; the one before then goes on, its values untouched.

    Collective: as `configure`.
    """
    previous, Logger.CURRENT = Logger.CURRENT, None
    try:
        configure(dir, format_strs, comm)
        yield
    finally:
        reset()
        Logger.CURRENT = previous


def _open_logger(
    dir: str | os.PathLike[str] | None,
    format_strs: Sequence[str] | None,
    comm: MPI.Comm | None,
    append: bool,
    log_suffix: str = "",
) -> tuple[Logger, Path | None]:
    """Return a logger with its files open, and where the earlier ones are now, if there were any.

    Collective, arguments and errors as `configure`'s.
    """
    if comm is None:
        comm = _world()
    rank = comm.Get_rank()
    path: str | OSError | PathError = ""
    if rank == 0:
        try:
            path = _choose_dir(dir)
        except PathError as err:
            path = err
        except OSError as err:
            text = f"cannot make a folder for logs: {err.strerror or err}"
            path = OSError(err.errno, text, err.filename or "runs")
    path = comm.bcast(path, root=0)
    if isinstance(path, OSError | PathError):
        raise path

    if format_strs is None:
        variable, default = ("", "stdout,log,csv") if rank == 0 else ("_MPI", "log")
        format_strs = os.environ.get(f"OPENAI_LOG_FORMAT{variable}", default).split(",")
    names = list(filter(None, map(str.strip, format_strs)))
    formats: list[KVWriter] = []
    failure: Exception | None = None
    earlier = None
    try:
        _probe(path)
        suffix = (f"-rank{rank:03d}" if rank > 0 else "") + log_suffix
        if not append:
            files = {FILES[name].format(suffix) for name in names if name in FILES}
            earlier = set_aside(Path(path), (x for x in files if not is_folder(Path(path, x))))
        for name in names:
            formats.append(make_output_format(name, path, suffix, append))
    except OSError as err:
        who = f"rank {rank} " if comm.Get_size() > 1 else ""
        text = f"{who}cannot write logs: {err.strerror or err}"
        failure = OSError(err.errno, text, err.filename or path)
    except (ValueError, ImportError) as err:
        failure = err
    for verdict in comm.allgather(failure):
        if verdict is not None:
            Logger(None, formats).close()
            raise verdict
    return Logger(path, formats, rank=rank, append=append), earlier


def _choose_dir(dir: str | os.PathLike[str] | None) -> str:
    """Return the absolute path of the run's folder.

    One that is named here is made here, so that no other run can take the same name.
    """
    given = dir if dir is not None else os.environ.get("OPENAI_LOGDIR")
    if given:
        return folder_path(given)
    base = folder_path(os.path.join("runs", f"{datetime.datetime.now():%Y-%m-%d-%H-%M-%S}"))
    path, tries = base, 1
    while True:
        try:
            os.makedirs(path)
            return path
        except FileExistsError:
            tries += 1
            path = f"{base}-{tries}"


def _probe(path: str) -> None:
    """Make the folder if needed; raise OSError, with its path, if no file can be written there."""
    try:
        os.makedirs(path, exist_ok=True)
        with tempfile.TemporaryFile(dir=path, buffering=0) as file:
            file.write(b"\0")
    except OSError as err:
        raise OSError(err.errno, err.strerror, path) from err


# ---------------------------------------------------------------- the current logger's interface


def log(*args: Any, level: int = INFO) -> None:
    """Write the arguments as one line, to the console and log.txt, if `level` is high enough."""
    get_current().log(*args, level=level)


def debug(*args: Any) -> None:
    """Log at level DEBUG."""
    log(*args, level=DEBUG)


def detail(*args: Any) -> None:
    """Log at level DETAIL: one of an iteration's steps, which a live console leaves out."""
    log(*args, level=DETAIL)


def info(*args: Any) -> None:
    """Log at level INFO."""
    log(*args, level=INFO)


def warn(*args: Any) -> None:
    """Log at level WARN."""
    log(*args, level=WARN)


def error(*args: Any) -> None:
    """Log at level ERROR."""
    log(*args, level=ERROR)


def set_level(level: int) -> None:
    """Set the least level that the current logger writes; DISABLED silences tables as well."""
    get_current().level = level


def logkv(key: str, val: Any) -> None:
    """Set a value of this iteration; the last one given counts."""
    get_current().logkv(key, val)


def logkv_mean(key: str, val: Any) -> None:
    """Take a value into the mean of those given this iteration."""
    get_current().logkv_mean(key, val)


def logkvs(d: Mapping[str, Any]) -> None:
    """Set several values."""
    for key, val in d.items():
        logkv(key, val)


def dumpkvs() -> dict[str, Any]:
    """Write this iteration's values to every format, forgets them, and returns them."""
    return get_current().dumpkvs()


def getkvs() -> dict[str, Any]:
    """Return this iteration's values so far, the logger's own dict."""
    return get_current().name2val


def is_appending() -> bool:
    """Return whether the current logger continues the files of an earlier run."""
    return Logger.CURRENT is not None and Logger.CURRENT.append


def get_dir() -> str | None:
    """Return the absolute path of the run's folder, None before `configure`."""
    return None if Logger.CURRENT is None else Logger.CURRENT.dir


record_tabular = logkv
dump_tabular = dumpkvs


@contextlib.contextmanager
def profile_kv(scopename: str) -> Iterator[None]:
    """Add the seconds spent in a `with` block to the value `wait_<scopename>`."""
    start = time.perf_counter()
    try:
        yield
    finally:
        kvs, key = getkvs(), f"wait_{scopename}"
        kvs[key] = kvs.get(key, 0.0) + time.perf_counter() - start
