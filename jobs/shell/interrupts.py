"""Stop at the user's wish: once, cleanly; twice, at once."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tsdfm.jobs.shell.console import say
from tsdfm.schemas.base import WorkError

IMPORTING = "<frozen importlib._bootstrap>"
AGAIN_SECONDS = 0.1  # until a signal that came at a bad moment is sent again


def interrupt(number: int, frame: FrameType | None) -> None:
    """A signal handler that raises KeyboardInterrupt; in the middle of an import later, when it is done.

    Modules written in C++ end the process, with pages of text, where their import raises anything that they don't expect.
    """
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            again = threading.Timer(AGAIN_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        frame = frame.f_back
    raise KeyboardInterrupt


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
