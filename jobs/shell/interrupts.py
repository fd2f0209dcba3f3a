"""Stop at the user's wish: once, cleanly; twice, at once."""

import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tsdfm.jobs.shell.console import say
from tsdfm.jobs.shell.signals import interrupt
from tsdfm.schemas.base import WorkError


class Interrupted(WorkError):
    """Stopped by the user, cleanly; what was made is kept."""


class _Flag:
    """Truthy once a signal came."""

    def __init__(self) -> None:
        self.raised = False

    def __bool__(self) -> bool:
        return self.raised


@contextmanager
def interruptible(first: str) -> Iterator[_Flag]:
    """First SIGINT, SIGTERM or SIGHUP: say how to go on, do what `first` says, then stop. Second: stop at once.

    Nothing that is finished is lost.
    """
    flag = _Flag()

    def handle(number: int, frame: FrameType | None) -> None:
        if flag.raised:
            interrupt(number, frame)
            return
        flag.raised = True
        say(f"{first}; interrupt again to stop at once; resume with: {shlex.join(resume_command())}")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield flag
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def resume_command() -> list[str]:
    """The command line that goes on with this run: the same one."""
    return ["tsdfm-pipeline", *sys.argv[1:]]
