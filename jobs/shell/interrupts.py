"""Stop at the user's wish: once, cleanly; twice, at once."""

import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.signals import interrupt
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.paths import redacted


class Interrupted(WorkError):
    """Stopped by the user, cleanly; what was made is kept."""


class _Flag:
    """Truthy once a signal came."""

    def __init__(self) -> None:
        self.raised = False
        self._number: int | None = None
        self._since = 0.0

    def __bool__(self) -> bool:
        return self.raised

    def raise_(self, number: int) -> None:
        """A signal came."""
        self.raised, self._number, self._since = True, number, time.monotonic()

    def is_urgent(self, seconds: float) -> bool:
        """Whether so many seconds passed since a signal other than Ctrl-C: Kubernetes and Slurm wait only for a while."""
        return self.raised and self._number != signal.SIGINT and time.monotonic() - self._since >= seconds


@contextmanager
def interruptible(first: str) -> Iterator[_Flag]:
    """First SIGINT, SIGTERM or SIGHUP: say how to go on, do what `first` says, then stop. Second: stop at once.

    Nothing that is finished is lost.
    """
    flag = _Flag()
    # By a thread: a handler runs in the midst of whatever the main one does, an import or the writing of a line that its own
    # line needs, too. A daemon: no lock that the main one may hold just then is needed to start it.
    teller = threading.Thread(target=_say_how_to_go_on, args=(first,), daemon=True)

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.raised:
            interrupt(number, frame)
            return
        flag.raise_(number)
        teller.start()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if teller.is_alive():  # not if a second signal came before it had begun
            teller.join()


def _say_how_to_go_on(first: str) -> None:
    say(f"{first}; interrupt again to stop at once; resume with: {shlex.join(resume_command())}")


def resume_command() -> list[str]:
    """The command line that goes on with this run: the same one. The secrets of URIs are left out."""
    return ["tsdfm-pipeline", *map(redacted, sys.argv[1:])]
