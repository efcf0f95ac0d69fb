"""What the console shows while a run trains: baselines' tables; a live table and bar; or little.

On a terminal, the latest table and a progress bar stand below all else that is printed, drawn anew
at the start of an iteration. The cursor is never hidden and no mode of the terminal is changed, so
there is nothing to restore when a run is killed.
"""

import contextlib
import importlib.util
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from common import logger
from common.watchdog import find_launcher

REDRAW_SECONDS = 0.2  # at least, between two pictures: drawing one takes some 1 ms
NARROWEST_BAR, WIDEST_BAR = 8, 40
GAP = 2  # columns between the bar and the texts beside it


class Limit(NamedTuple):
    """Something that ends a run: `total`, in `unit`s, of one of the counters of `learn`."""

    counter: str
    total: float
    unit: str


def limits_of(args: Any) -> list[Limit]:
    """Return the limits that hold for a run with these arguments."""
    limits = [
        Limit("timesteps_so_far", args.max_timesteps, "steps"),
        Limit("timesteps_so_far", args.stop_timesteps or 0, "steps"),
        Limit("episodes_so_far", args.max_episodes, "episodes"),
        Limit("iters_so_far", args.max_iters, "iterations"),
        Limit("seconds", args.max_seconds, "s"),
    ]
    return [limit for limit in limits if limit.total]


@contextlib.contextmanager
def console_while_training(
    limits: Sequence[Limit], *, quiet: bool
) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Have the console show what suits it in a `with` block, in place of the logger's plain tables.

    Yields:
        a function of `learn`'s locals, to be called at the start of each iteration.

    Args:
        limits: of the run, for the bar.
        quiet: show warnings and errors alone.
    """
    formats = logger.get_current().output_formats
    consoles = [
        fmt for fmt in formats if isinstance(fmt, logger.HumanOutputFormat) and not fmt.file
    ]
    terminal = terminal_of(1)
    shown: QuietOutputFormat | LiveOutputFormat | None = None
    if consoles and quiet:
        shown = QuietOutputFormat()
    elif consoles and terminal and importlib.util.find_spec("rich"):
        try:
            shown = LiveOutputFormat(limits, terminal)
        except Exception as error:  # training is worth more than its picture
            logger.warn(f"WARNING: no live table and bar, but plain tables: {error!r}")
    if shown is None:
        yield lambda local: None
        return
    position = formats.index(consoles[0])
    formats[position] = shown
    try:
        yield shown.show
    finally:
        shown.close()
        formats[position] = consoles[0]


class QuietOutputFormat(logger.KVWriter, logger.SeqWriter):
    """Warnings and errors, and no tables."""

    level = logger.WARN
    name = "stdout"

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Do nothing."""

    def writeseq(self, seq: Iterable[Any]) -> None:
        """Print one line."""
        print(*seq, flush=True)

    def show(self, local: dict[str, Any]) -> None:
        """Do nothing."""


class LiveOutputFormat(logger.KVWriter, logger.SeqWriter):
    """The latest table, and below it a bar, at the foot of a terminal; text goes above them.

    What is printed or warned goes above them too. The lines that tell an iteration's steps are left
    to log.txt.
    """

    level = logger.INFO
    name = "stdout"

    def __init__(self, limits: Sequence[Limit], terminal: str) -> None:
        """Begin to show it.

        Args:
            limits: of the run.
            terminal: its path, whose size counts.
        """
        from rich.console import Console
        from rich.live import Live

        class Terminal(Console):
            """A console that hides no cursor, and outlives its reader."""

            def show_cursor(self, show: bool = True) -> bool:
                return False

            def on_broken_pipe(self) -> None:
                self.quiet = True

        self.limits = limits
        self.table = ""
        self.values: dict[str, Any] = {}
        self.local: dict[str, Any] = {}
        self.history: deque[tuple[float, float]] = deque(maxlen=100)  # of (seconds, fraction done)
        self.drawn = -math.inf
        self.is_closing = self.is_broken = False
        self.terminal = os.open(terminal, os.O_RDONLY | os.O_NOCTTY)
        self.console = Terminal(force_terminal=True, force_interactive=True, highlight=False)
        self.live = Live(
            get_renderable=self.picture,
            console=self.console,
            auto_refresh=False,
            redirect_stderr=terminal_of(2) == terminal,
        )
        self.live.start()

    def writekvs(self, kvs: Mapping[str, Any]) -> None:
        """Take the table to show from now on."""
        self.values = dict(kvs)
        self.table = logger.table_text(kvs)

    def writeseq(self, seq: Iterable[Any]) -> None:
        """Print one line, above table and bar."""
        from rich.text import Text

        self.console.print(Text(" ".join(map(str, seq))), soft_wrap=True)

    def show(self, local: dict[str, Any]) -> None:
        """Draw table and bar anew, if it is not too soon."""
        now = time.monotonic()
        is_first = not self.local
        steps = local.get("timesteps_so_far", 0)
        if local.get("seg"):  # those of running episodes too: perhaps none ever ends
            steps += local["seg"]["carry"]["cur_ep_len"] * local["comm"].Get_size()
        self.local = {**local, "seconds": now - local["tstart"], "timesteps_so_far": steps}
        if not is_first:  # the first iteration may compile, and says nothing of the others' pace
            self.history.append((now, self.fraction_done()))
        if now - self.drawn >= REDRAW_SECONDS:
            self.drawn = now
            self._try(self.live.refresh)

    def close(self) -> None:
        """Leave the last table and bar on the terminal."""
        self.is_closing = True
        self._try(self.live.stop)
        with contextlib.suppress(OSError):
            os.close(self.terminal)

    def _try(self, draw: Callable[[], object]) -> None:
        """Draw; a first failure that is no closed terminal is a warning: training goes on."""
        try:
            draw()
        except OSError:
            pass
        except Exception as error:
            if not self.is_broken:
                self.is_broken = True
                logger.warn(f"WARNING: the progress bar failed: {error!r}")

    def fraction_done(self) -> float:
        """Return how far the run is, from 0 to 1, by the limit that is nearest."""
        return min(max((self.done(limit) for limit in self.limits), default=0.0), 1.0)

    def done(self, limit: Limit) -> float:
        """Return how much of a limit is used up; 1 is all of it."""
        return self.local.get(limit.counter, 0) / limit.total

    def picture(self) -> Any:
        """Return what rich draws: the table where it fits, and the bar.

        An empty line below it keeps what another process prints off the bar.
        """
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        columns, lines = terminal_size(self.terminal)
        self.console.size = columns, lines
        width = columns - 1  # some terminals wrap after the last column
        texts = fit(self.fields(), width - NARROWEST_BAR)
        bar_width = min(width - sum(GAP + len(text) for text in texts), WIDEST_BAR)
        bar = Table.grid(padding=(0, GAP, 0, 0))
        bar.add_row(ProgressBar(1.0, self.fraction_done(), width=max(bar_width, 1)), *texts)
        table = self.table.splitlines()
        fits = table and len(table[0]) <= width and len(table) + 2 <= lines
        parts = [Text("\n".join(table), no_wrap=True)] if fits else []
        return Group(*parts, bar, *([] if self.is_closing else [""]))

    def fields(self) -> list[tuple[int, str]]:
        """Return the texts beside the bar in order, each with its rank, the most wanted being 0."""
        fields = [(0, f"{math.floor(100 * self.fraction_done())}%")]
        limit = max(self.limits, key=self.done, default=None)
        if limit is not None:
            done = int(self.local.get(limit.counter, 0))
            fields.append((1, f"{done:,}/{int(limit.total):,} {limit.unit}"))
        if limit is None or limit.unit != "steps":
            fields.append((5, f"{self.local.get('timesteps_so_far', 0):,} steps"))
        if math.isfinite(self.values.get("TimestepsPerSec", math.nan)):
            fields.append((4, f"{self.values['TimestepsPerSec']:,.0f}/s"))
        fields.append((2, f"{duration(seconds_left(self.history))} left"))
        for key in ("EpTrueRewMean", "EpRewMean"):
            if math.isfinite(self.values.get(key, math.nan)):
                fields.append((3, f"return {self.values[key]:.4g}"))
                break
        return fields


def fit(fields: Sequence[tuple[int, str]], width: int) -> list[str]:
    """Return the texts of the most wanted fields that fit, with a gap before each, in order."""
    kept = list(fields)
    while len(kept) > 1 and sum(GAP + len(text) for _, text in kept) > width:
        kept.remove(max(kept))
    return [text for _, text in kept]


def seconds_left(history: Sequence[tuple[float, float]]) -> float:
    """Return how long the rest takes at the pace of `history`, of (seconds, fraction done)."""
    if len(history) < 2 or history[-1][1] <= history[0][1]:
        return math.nan
    (start, before), (now, done) = history[0], history[-1]
    return (1.0 - done) * (now - start) / (done - before)


def duration(seconds: float) -> str:
    """Return h:mm:ss, dashes for what is not known."""
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, second = divmod(math.ceil(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


def terminal_size(terminal: int) -> tuple[int, int]:
    """Return columns and lines of an open terminal; 80 and 24 if it does not say."""
    try:
        columns, lines = os.get_terminal_size(terminal)
    except OSError:
        columns = lines = 0
    return columns or 80, lines or 24


def terminal_of(descriptor: int) -> str | None:
    """Return the path of the terminal on which this process's output ends; None if on no terminal.

    Under a launcher, that is the launcher's own output: a rank's is a pipe, or with Open MPI a
    pseudo-terminal even where the user looks at neither.

    Args:
        descriptor: 1 for the standard output, 2 for the standard error.
    """
    stream = {1: sys.stdout, 2: sys.stderr}[descriptor]
    try:
        if os.environ.get("TERM", "dumb") == "dumb" or stream.fileno() != descriptor:
            return None
        path = os.readlink(f"/proc/{find_launcher() or 'self'}/fd/{descriptor}")
    except (OSError, ValueError, AttributeError):  # redirected within Python, None, or no /proc
        return None
    return path if path.startswith(("/dev/pts/", "/dev/tty", "/dev/console")) else None
