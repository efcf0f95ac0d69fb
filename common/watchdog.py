"""Ends a process in which nothing moves any more, and says where it stood."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable

STDERR = 2  # the file: what stands in for sys.stderr in a notebook may have none
end_process = os._exit  # as it is at import: within a run it is taken for somebody's mistake


class Watchdog:
    """A thread that dumps all stacks and ends the process with code 1 after a time of no progress.

    A rank stuck in its environment, and ranks that wait for it in a collective, are found alike;
    the launcher then ends the other ranks. The process may be stuck where no Python thread runs
    any more: a timer of `faulthandler`, in C, stands behind this one.
    """

    def __init__(
        self, timeout_seconds: float, progress: Callable[[], object], *, name: str
    ) -> None:
        """Start watching.

        Args:
            timeout_seconds: how long nothing may move, above 0.
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
        while not self._stopped.wait(min(1.0, self.timeout_seconds / 10)):
            now = self.progress()
            if now != seen:
                seen, since = now, time.monotonic()
                timeout = self.timeout_seconds + 2.0
                faulthandler.dump_traceback_later(timeout, exit=True, file=STDERR)
            elif time.monotonic() - since > self.timeout_seconds:
                sys.stderr.write(
                    f"{self.name}: no progress for {self.timeout_seconds:g} s, ending the job; "
                    "all stacks:\n"
                )
                faulthandler.dump_traceback(file=STDERR)
                sys.stdout.flush()
                end_process(1)

    def stop(self) -> None:
        """Stop watching."""
        self._stopped.set()
        self._thread.join()  # or it might set the timer once more
        faulthandler.cancel_dump_traceback_later()
