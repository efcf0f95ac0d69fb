"""One CSV row an episode: its undiscounted return, length and end time.

The file starts with '#' and a JSON header (`t_start`: seconds since 1970, `env_id`), then the
column names `r,l,t` and further keys, then the rows; `t` counts seconds from `t_start`.

Source: baselines/bench/monitor.py @ ea25b9e.
Differs:
- Gymnasium's API: a truncated episode is over too, and `reset_keywords` are looked up among
  `reset`'s `options` as well.
- A resumed run continues its file: `truncate_monitor_file`, then `append`.
- No two Monitors of a process write one file: the second is refused it, or takes it to `append`.
- A reward may be one number in any wrapping; an `info` that is no dict is replaced by one.
- `load_results` names the file and line of what it cannot read, warns of what it leaves out (a
  last row cut short, a file without a whole header), and adds no `index` column; the JSON files
  of baselines' first releases are not read.
"""

import contextlib
import csv
import glob
import io
import itertools
import json
import os
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import gymnasium as gym

from common import env_api
from common.files import no_link

if TYPE_CHECKING:
    import pandas


_files: "weakref.WeakSet[TextIO]" = weakref.WeakSet()  # of this process's Monitors


class LoadMonitorResultsError(Exception):
    """A folder without monitor files, or a file that is not one."""


class Monitor(gym.Wrapper):
    """Keeps every episode's return, length and time, and writes them to a file.

    Attributes:
        running_return: sum of the running episode's rewards.
        running_length: steps of the running episode.
        needs_reset: whether the next call must be `reset`.
        total_steps: steps of all episodes.
        tstart: seconds since 1970 at construction; earlier if an older run goes on.
        current_reset_info: `reset_keywords`' values for the running episode.
        episode_rewards, episode_lengths, episode_times: one entry a finished episode.
        rows: of the file, those of an earlier process included.
    """

    EXT = "monitor.csv"
    _STATE = (
        "running_return",
        "running_length",
        "needs_reset",
        "total_steps",
        "current_reset_info",
    )

    def __init__(
        self,
        env: gym.Env,
        filename: str | os.PathLike[str] | None,
        allow_early_resets: bool = False,
        reset_keywords: Sequence[str] = (),
        info_keywords: Sequence[str] = (),
        *,
        append: bool = False,
    ) -> None:
        """Wrap `env` and start the file, replacing one that is there unless `append`.

        Args:
            env: the environment.
            filename: '.monitor.csv' is appended unless it ends so; a folder gets a file
                'monitor.csv'; None writes no file.
            allow_early_resets: accept a `reset` in mid-episode, and forget that episode.
            reset_keywords: arguments (or options) of `reset` that become columns.
            info_keywords: keys of an episode's last `info` that become columns.
            append: continue a file that is there; `t` then counts from its `t_start`. A Monitor
                of this process that still has it open writes no more.

        Raises:
            ValueError: if another Monitor of this process is writing the file to replace; if the
                file to continue is not a monitor file, or has other columns.
        """
        super().__init__(env)
        self.allow_early_resets = allow_early_resets
        self.reset_keywords = tuple(reset_keywords)
        self.info_keywords = tuple(info_keywords)
        self.running_return = 0.0
        self.running_length = 0
        self.needs_reset = True
        self.total_steps = 0
        self.tstart = time.time()
        self.current_reset_info: dict[str, Any] = {}
        self.episode_rewards: list[float] = []
        self.episode_lengths: list[int] = []
        self.episode_times: list[float] = []
        self.rows = 0
        self._file: TextIO | None = None
        if filename is not None:
            self._open_file(_monitor_file(filename), append)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment and start a new episode.

        Raises:
            RuntimeError: in mid-episode, unless `allow_early_resets`.
            ValueError: if one of `reset_keywords` is missing.
        """
        if not (self.needs_reset or self.allow_early_resets):
            raise RuntimeError(
                f"tried to reset an environment after {self.running_length} steps of an unfinished "
                "episode; to allow this, wrap it with Monitor(env, path, allow_early_resets=True)"
            )
        for key in self.reset_keywords:
            value = kwargs.get(key, (kwargs.get("options") or {}).get(key))
            if value is None:
                raise ValueError(f"Monitor expects the keyword {key!r} in reset, got {kwargs}")
            self.current_reset_info[key] = value
        self.running_return = 0.0
        self.running_length = 0
        self.needs_reset = False
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step; an episode's last `info` gets `info['episode']` with r, l, t and further keys.

        Raises:
            RuntimeError: before the first reset, and after an episode's end.
            KeyError: if one of `info_keywords` is missing from an episode's last `info`.
            ValueError: for a reward that is no number, and for a step of old gym's API.
        """
        if self.needs_reset:
            raise RuntimeError("tried to step an environment that needs a reset first")
        ob, reward, terminated, truncated, info = self.env.step(action)
        try:
            rew, over = float(reward), bool(terminated or truncated)
        except (OverflowError, TypeError, ValueError):
            rew, over = env_api.as_number(reward), True
        self.running_return += rew  # a Python float, whatever the reward's dtype
        self.running_length += 1
        self.total_steps += 1
        if over and env_api.is_over(terminated, truncated):
            info = info if isinstance(info, dict) else {}
            self._end_episode(info)
        return ob, reward, terminated, truncated, info

    def close(self) -> None:
        """Close the file and the environment."""
        if self._file is not None:
            self._file.close()
        super().close()

    def get_total_steps(self) -> int:
        """Return the number of steps of all episodes, the running one included."""
        return self.total_steps

    def get_episode_rewards(self) -> list[float]:
        """Return the finished episodes' returns, not rounded."""
        return self.episode_rewards

    def get_episode_lengths(self) -> list[int]:
        """Return the finished episodes' lengths in steps."""
        return self.episode_lengths

    def get_episode_times(self) -> list[float]:
        """Return when the episodes finished, in seconds since construction."""
        return self.episode_times

    def checkpoint_state(self) -> dict[str, Any]:
        """Return the running episode and the clock; of past episodes, how many rows there are."""
        state = {name: getattr(self, name) for name in self._STATE}
        return {**state, "rows": self.rows, "elapsed": time.time() - self.tstart}

    def restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """Go on with that episode and clock; `rows` remains what this Monitor's own file has."""
        for name in self._STATE:
            setattr(self, name, state[name])
        self.tstart = time.time() - state["elapsed"]

    def _open_file(self, path: str, append: bool) -> None:
        writers = _open_files(path)
        if writers and not append:
            raise ValueError(
                f"another Monitor of this process is writing {path}: close it first, or give "
                "another name"
            )
        for file in writers:
            file.close()
        columns = ["r", "l", "t", *self.reset_keywords, *self.info_keywords]
        header = None
        if append:
            self.rows = truncate_monitor_file(path)
            header = _read_header(path, columns)
        self._file = open(  # noqa: SIM115
            path, "a" if header else "w", encoding="utf-8", newline="", opener=no_link
        )
        _files.add(self._file)
        self._writer = csv.DictWriter(self._file, fieldnames=columns, lineterminator="\n")
        if header:
            self.tstart = header["t_start"]
            return
        spec = self.env.spec
        header = {"t_start": self.tstart, "env_id": spec.id if spec else None}
        self._file.write(f"# {json.dumps(header)}\n")
        self._writer.writeheader()
        self._file.flush()

    def _end_episode(self, info: dict[str, Any]) -> None:
        """Record the finished episode, and add it to `info`."""
        self.needs_reset = True
        elapsed = time.time() - self.tstart
        if self.episode_times:  # a clock that was set back must not
            elapsed = max(elapsed, self.episode_times[-1])
        self.episode_rewards.append(self.running_return)
        self.episode_lengths.append(self.running_length)
        self.episode_times.append(elapsed)
        episode: dict[str, Any] = {
            "r": round(self.running_return, 6),
            "l": self.running_length,
            "t": round(elapsed, 6),
        }
        for key in self.info_keywords:
            if key not in info:
                raise KeyError(f"info_keywords names {key!r}, the last info has {sorted(info)}")
            episode[key] = info[key]
        episode |= self.current_reset_info
        if self._file is not None:
            self._write_row(self._file, episode)
        info["episode"] = episode

    def _write_row(self, file: TextIO, episode: dict[str, Any]) -> None:
        try:
            self._writer.writerow(episode)
            file.flush()
            self.rows += 1
        except (OSError, ValueError) as error:  # a full disk: training is worth more than this
            warnings.warn(f"no more episodes are written to {file.name}: {error}", stacklevel=2)
            self._file = None
            with contextlib.suppress(OSError):  # it would like to flush
                file.close()


def is_being_written(filename: str | os.PathLike[str]) -> bool:
    """Return whether an open Monitor of this process writes the file, under any name of it.

    Args:
        filename: as Monitor's.
    """
    return bool(_open_files(_monitor_file(filename)))


def truncate_monitor_file(filename: str | os.PathLike[str], rows: int | None = None) -> int:
    """Cut a monitor file after its first `rows` rows; return how many it then has.

    What its writer's death cut short goes too: a last row, or the header and with it everything.
    One system call cuts the file: no crash leaves it in between, and a full disk does not matter.

    Args:
        filename: as Monitor's.
        rows: None keeps all that are whole.

    Returns:
        `rows`, or fewer if there were no more; 0 if there is no file.

    Raises:
        ValueError: if it is not a monitor file; it then stays as it is.
    """
    path = _monitor_file(filename)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return 0
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    kept = end = 0
    if len(lines) >= 2:
        _parse_header(lines[0])
        reader = csv.reader(lines[2:])  # a row's quoted value may span lines
        kept = sum(1 for _ in itertools.islice(reader, rows))
        end = 2 + reader.line_num
    with open(path, "rb+", opener=no_link) as file:
        file.truncate(sum(len(line.encode()) for line in lines[:end]))
    return kept


def find_monitor(env: Any) -> Monitor | None:
    """Return the outermost Monitor in a chain of wrappers linked by `.env`, or None."""
    while env is not None and not isinstance(env, Monitor):
        env = getattr(env, "env", None)
    return env


def frame_counter(env: Any) -> Callable[[], int] | None:
    """Return what counts the frames that an Atari emulator under `env` has played; else None.

    No-ops at a game's start count, and a held action's every frame: what a timestep is several of.
    """
    emulator = getattr(getattr(env, "unwrapped", None), "ale", None)
    return getattr(emulator, "getFrameNumber", None)


def get_monitor_files(dir: str | os.PathLike[str]) -> list[str]:
    """Return the paths of the monitor files in `dir`, sorted."""
    return sorted(glob.glob(os.path.join(glob.escape(os.fspath(dir)), f"*{Monitor.EXT}")))


def load_results(dir: str | os.PathLike[str]) -> "pandas.DataFrame":
    """Return all episodes of a folder's monitor files, in the order in which they ended.

    Returns:
        Columns r, l, t and further keys, one row an episode; `t` counts seconds from the earliest
        file's start. `attrs['headers']` holds the files' headers.

    Raises:
        LoadMonitorResultsError: if there is no monitor file with a header, or one is malformed.
    """
    import pandas

    files = get_monitor_files(dir)
    if not files:
        raise LoadMonitorResultsError(f"no files named *{Monitor.EXT} in {os.fspath(dir)}")
    results = [result for result in map(_read_file, files) if result is not None]
    if not results:
        raise LoadMonitorResultsError(f"no monitor file in {os.fspath(dir)} has a whole header")
    headers = [header for header, _ in results]
    start = min(header["t_start"] for header in headers)
    for header, episodes in results:
        # Offsets first: adding them to seconds since 1970 would cost the last digits.
        episodes["t"] = episodes["t"] + (header["t_start"] - start)
    # An empty table would turn the others' integer columns into floats.
    tables = [episodes for _, episodes in results if len(episodes)] or [results[0][1]]
    merged = pandas.concat(tables).sort_values("t", kind="stable", ignore_index=True)
    merged.attrs["headers"] = headers
    return merged


def _read_file(path: str) -> "tuple[dict[str, Any], pandas.DataFrame] | None":
    """Return one file's header and episodes; None, with a warning, if its header is cut short."""
    import pandas

    try:
        with open(path, encoding="utf-8") as file:
            lines = file.readlines()
        if lines and not lines[-1].endswith("\n"):  # its writer died, or is writing just now
            warnings.warn(f"{path}: left out a last line cut short: {lines.pop()!r}", stacklevel=3)
        if len(lines) < 2:
            warnings.warn(f"{path}: left out, it ends before its header does", stacklevel=3)
            return None
        header = _parse_header(lines[0])
        _check_rows(lines[1:])
    except (ValueError, csv.Error) as error:
        raise LoadMonitorResultsError(f"{path} is not a monitor file: {error}") from error
    text = io.StringIO("".join(lines[1:]))
    # Python's float, because older pandas' own parser may miss the last digit.
    return header, pandas.read_csv(text, converters={"r": float, "t": float})


def _open_files(path: str) -> list[TextIO]:
    """Return what this process's Monitors have open of the file at `path`, under any name of it."""
    try:
        there = os.stat(path)
    except OSError:  # a file that was deleted meanwhile is in nobody's way
        return []
    files = []
    for file in _files:
        with contextlib.suppress(OSError, ValueError):  # one that is closed, by whomever
            if os.path.samestat(there, os.fstat(file.fileno())):
                files.append(file)
    return files


def _monitor_file(filename: str | os.PathLike[str]) -> str:
    """Return the path of the file that Monitor writes for `filename`."""
    filename = os.fspath(filename)
    if os.path.isdir(filename):
        return os.path.join(filename, Monitor.EXT)
    return filename if filename.endswith(Monitor.EXT) else f"{filename}.{Monitor.EXT}"


def _read_header(path: str, columns: list[str]) -> dict[str, Any] | None:
    """Return the header of a file to continue with `columns`; None if there is nothing in it."""
    if not os.path.exists(path) or not os.path.getsize(path):
        return None
    with open(path, encoding="utf-8", newline="") as file:
        header = _parse_header(file.readline())
        found = next(csv.reader([file.readline()]))
    if found != columns:
        raise ValueError(f"cannot continue {path}: it has the columns {found}, not {columns}")
    return header


def _parse_header(line: str) -> dict[str, Any]:
    """Return the first line's JSON; ValueError if it is not a monitor file's."""
    try:
        header = json.loads(line.removeprefix("#"))
    except (ValueError, RecursionError):
        header = None
    is_header = line.startswith("#") and isinstance(header, dict)
    if not is_header or not isinstance(header.get("t_start"), int | float):
        raise ValueError(f"line 1 is not '#' and a JSON header with t_start: {line[:80]!r}")
    return header


def _check_rows(lines: list[str]) -> None:
    """Raise ValueError, with the line's number, unless `lines` are whole rows of numbers."""
    reader = csv.reader(lines)
    columns = next(reader)
    if not {"r", "l", "t"} <= set(columns):
        raise ValueError(f"line 2 does not name the columns r, l and t: {columns}")
    for row in reader:
        try:
            values = dict(zip(columns, row, strict=True))
            for column in ("r", "l", "t"):
                float(values[column])
        except ValueError as error:
            raise ValueError(f"line {reader.line_num + 1}, {row} for {columns}: {error}") from error
