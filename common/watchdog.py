"""Ends a process in which nothing moves any more, or whose launcher is gone, and says so."""

import contextlib
import faulthandler
import math
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STDERR = 2  # the file: what stands in for sys.stderr in a notebook may have none
end_process = os._exit  # as it is at import: within a run it is taken for somebody's mistake
GRACE_SECONDS = 1.5  # for the other ranks to say where they stand: the launcher ends them next
LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "orterun", "prted", "orted")
# In the environment of what this process has started, which ends with it; see common.leftovers.
PROCESS_MARK = "PPO1_PROCESS"
PROXIES = (*LAUNCHERS, "hydra_pmi_proxy")  # MPICH's, all that a machine without its mpirun has

_patience = 0.0  # seconds that no timeout cuts short, see `patience`
_life = 0  # see `note_life`


def note_life() -> None:
    """Tell the watchdog that there is progress which it does not see by itself."""
    global _life
    _life += 1


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Have the watchdog bear a block that may take up to `seconds` without visible progress."""
    global _patience
    before, _patience = _patience, seconds
    try:
        yield
    finally:
        _patience = before


class Watchdog:
    """A thread that dumps all stacks and ends the process with code 1 after a time of no progress.

    A rank stuck in its environment, and ranks that wait for it in a collective, are found alike;
    the launcher then ends the other ranks, or is ended itself. The process may be stuck where no
    Python thread runs any more: a timer of `faulthandler`, in C, stands behind this one. A rank
    whose launcher was killed ends too, at once, because nobody would ever end it.
    """

    def __init__(
        self, timeout_seconds: float, progress: Callable[[], object], *, name: str
    ) -> None:
        """Start watching.

        Args:
            timeout_seconds: how long nothing may move, above 0; math.inf watches the launcher
                alone.
            progress: returns something that changes when there is progress; called from a thread.
            name: of the process, for its message.
        """
        self.timeout_seconds = timeout_seconds
        self.progress = progress
        self.name = name
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def watch(self, timeout_seconds: float, progress: Callable[[], object]) -> None:
        """Watch something else from now on; arguments as at the start."""
        self.timeout_seconds, self.progress = timeout_seconds, progress

    def _watch(self) -> None:
        seen: object = self  # so that the first look sees progress
        since = 0.0
        above = _above()
        while not self._stopped.wait(min(1.0, self.timeout_seconds / 10)):
            if _above() != above:
                self._end("its launcher has ended, and so does this process")
            now = self.progress(), self.timeout_seconds, _patience, _life
            timeout = max(self.timeout_seconds, _patience)
            if now != seen:
                seen, since = now, time.monotonic()
                faulthandler.cancel_dump_traceback_later()
                if timeout < math.inf:
                    faulthandler.dump_traceback_later(timeout + 2.0, exit=True, file=STDERR)
            elif time.monotonic() - since > timeout:
                self._end(f"no progress for {timeout:g} s, ending the job; all stacks:", dump=True)

    def _end(self, why: str, *, dump: bool = False) -> None:
        """Say why, and end the process, whatever its output and its other threads do meanwhile."""
        faulthandler.dump_traceback_later(GRACE_SECONDS + 3.0, exit=True, file=STDERR)
        with contextlib.suppress(Exception):  # closed, or None
            sys.stderr.write(f"{self.name}: {why}\n")
            sys.stderr.flush()
        if dump:
            faulthandler.dump_traceback(file=STDERR)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if dump:
            time.sleep(GRACE_SECONDS)
            launcher = find_launcher()
            if launcher is not None:
                end_stuck_launcher(launcher)
        end_process(1)

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()  # or it might set the timer once more
        faulthandler.cancel_dump_traceback_later()


def _above() -> tuple[int | None, int | None]:
    """Return the processes that started this one as a rank and without which it is an orphan."""
    return find_launcher(), find_launcher(PROXIES)


def find_launcher(names: Sequence[str] = LAUNCHERS) -> int | None:
    """Return the process id of the `mpirun` above this process; None if this machine has none."""
    pid = os.getppid()
    while pid > 1:
        try:
            _, name, fields = re.split(r"\((.*)\)", Path(f"/proc/{pid}/stat").read_text())
        except OSError:  # not Linux
            return None
        if name in names:
            return pid
        pid = int(fields.split()[1])  # its parent
    return None


def end_stuck_launcher(pid: int, *, grace_seconds: int = 5) -> subprocess.Popen[bytes]:
    """Start a child, and return it, that kills process `pid` if it lives some seconds longer.

    When a link is cut, MPICH's mpirun waits for the far side for as long as TCP does, a quarter of
    an hour, although the ranks of this side have told it that they end.
    """
    wait = f"for i in $(seq {grace_seconds}); do sleep 1; kill -0 {pid} || exit; done"
    return subprocess.Popen(
        ["sh", "-c", f"{wait}; kill -KILL {pid}"],
        cwd="/",
        env={name: value for name, value in os.environ.items() if name != PROCESS_MARK},
        start_new_session=True,  # or the launcher would end it with this process
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
