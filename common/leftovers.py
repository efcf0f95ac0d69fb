"""The end of a script's process: what an environment left behind does not outlive it for long.

A child that was never ended keeps the pipes of the rank open, for which mpirun waits; a thread that
is no daemon keeps the rank itself. Both get GRACE_SECONDS, however the process ends: killed, too.
"""

import atexit
import contextlib
import faulthandler
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from common.mpi import MPI
from common.mpi_util import say
from common.watchdog import PROCESS_MARK

GRACE_SECONDS = 4
FINALIZE_SECONDS = 600.0  # for MPI, which waits for ranks that still upload or write
# Reads process ids, the last line counts; when the pipe is closed, ends what is left after a while.
SWEEPER = """
while read -r line; do ids=$line; done
marked() {{ grep -lsxz {mark} /proc/[0-9]*/environ | cut -d/ -f3; }}
[ -n "$ids$(marked)" ] || exit
sleep {grace}
kill -KILL $ids $(marked)
"""


class Sweeper:
    """A thread that tells a shell the children of this process, which it kills soon after its end.

    The shell outlives this process, killed or not.
    """

    def __init__(self) -> None:
        """Begin to look for children, every second."""
        mark = f"{os.getpid()}-{time.time_ns()}"
        self.shell = subprocess.Popen(
            ["sh", "-c", SWEEPER.format(mark=f"{PROCESS_MARK}={mark}", grace=GRACE_SECONDS)],
            cwd="/", bufsize=0,
            start_new_session=True,  # or the launcher would end it with this process
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.shell.stdin is not None
        self.pipe = self.shell.stdin
        # A forked child that has the pipe open would hide the end of this process
        os.register_at_fork(after_in_child=self.pipe.close)
        os.environ[PROCESS_MARK] = mark  # by which a child is known whose own parent has ended
        self.ids: set[int] = set()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="sweeper", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stopped.wait(1.0):
            self.look()

    def look(self) -> None:
        """Tell the shell the children that there are, if they are others than before."""
        ids = descendants(os.getpid()) - {self.shell.pid}
        if ids != self.ids:
            self.ids = ids
            with contextlib.suppress(OSError):
                self.pipe.write(f"{' '.join(map(str, ids))}\n".encode())

    def close(self) -> None:
        """Let the grace of what is left begin."""
        self._stopped.set()
        self._thread.join()
        self.look()
        self.pipe.close()
        self.shell.returncode = 0  # nobody waits for it


def descendants(pid: int) -> set[int]:
    """Return the process ids of a process's children and theirs; none where there is no /proc."""
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # a thread that has ended meanwhile
            for child in map(int, path.read_text().split()):
                found |= {child} | descendants(child)
    return found


@contextlib.contextmanager
def ending_what_is_left() -> Iterator[None]:
    """Run a script's `main`; end its process then, with its exit code, whatever it left behind.

    For `if __name__ == "__main__"` alone: all children of the process are taken for its own.
    """
    atexit.register(_finalize)  # now, so that it runs after those that `main` registers
    sweeper = Sweeper()
    try:
        yield
    finally:
        sweeper.close()
        code = _exit_code(sys.exc_info()[1])
        deadline = time.monotonic() + GRACE_SECONDS
        for thread in _stubborn_threads():
            thread.join(max(deadline - time.monotonic(), 0.0))
        _flush()
        stubborn = _stubborn_threads()
        if stubborn:
            if not isinstance(sys.exc_info()[1], SystemExit | None):
                traceback.print_exc()
            names = ", ".join(thread.name for thread in stubborn)
            say(f"WARNING: this process exits although threads still run: {names}\n")
            atexit._run_exitfuncs()
            _flush()
            os._exit(code)


def _finalize() -> None:
    """End MPI, or this process where that hangs; Python itself would do it without a watchdog."""
    if not MPI.Is_finalized():
        faulthandler.dump_traceback_later(FINALIZE_SECONDS, exit=True, file=2)
        MPI.Finalize()
        faulthandler.cancel_dump_traceback_later()


def _stubborn_threads() -> list[threading.Thread]:
    """Return the threads other than this one for whose end Python waits before it leaves."""
    this = threading.current_thread()
    return [x for x in threading.enumerate() if not x.daemon and x is not this]


def _exit_code(error: BaseException | None) -> int:
    """Return the exit code of a process whose `main` ended with `error`."""
    if error is None or (isinstance(error, SystemExit) and error.code is None):
        return 0
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _flush() -> None:
    """Flush what is printed. Where nobody reads it, have Python not fail as it leaves."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
