"""What an interrupt does. It imports next to nothing, for it has to be known before anything else is loaded.

A signal that asks to stop becomes a KeyboardInterrupt, where that is safe. While Python imports a library it is not: the
library may swallow it, it ends in a traceback, and modules written in C++ end the process. So it waits for the import to be
done; so it does while Python's logging takes or lets go its lock, which would stay taken. And where Python itself swallows
it, as it does in callbacks, it is raised again, and what Python would write of that is not written.
"""

import _thread
import signal
import sys
import threading
from types import FrameType

INTERRUPTED = "interrupted; finished work is kept, the same command goes on with it"
CODE = 130
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C; Kubernetes and Slurm; a closed terminal
IMPORTING = "<frozen importlib._bootstrap>"  # where Python keeps the code of an import
LOCKING = ("_acquireLock", "_releaseLock", "_prepareFork", "_afterFork")  # of `logging`: a fork calls them, too
WAKING = signal.SIGURG  # means nothing, and interrupts what waits
SOON_SECONDS, SWALLOWED_SECONDS = 0.1, 1.0  # until a signal is looked at again


class _Again:
    """A signal that is sent once more after a while, or soon after Python has swallowed it, unless it is settled before."""

    def __init__(self) -> None:
        self.number = 0
        self.timer: threading.Timer | None = None
        self.sent = False  # by this, not by anybody else
        self.waiting = False  # it has not been raised yet
        self._former = sys.unraisablehook
        self._waker = signal.getsignal(WAKING)

    def arm(self, number: int, seconds: float) -> None:
        self.settle()
        self.number = number
        self.timer = threading.Timer(seconds, self._send, (number,))
        self.timer.daemon = True
        self.timer.start()
        self._former, sys.unraisablehook = sys.unraisablehook, self._swallowed
        self._waker = signal.getsignal(WAKING)
        if self._waker is not None:  # or a library has it, in C
            signal.signal(WAKING, _nothing)

    def settle(self) -> None:
        if self.timer is not None:
            sys.unraisablehook = self._former
            if self._waker is not None:
                signal.signal(WAKING, self._waker)
            self.timer.cancel()
            self.timer = None
        self.sent = self.waiting = False

    def _swallowed(self, told: "sys.UnraisableHookArgs") -> None:
        if issubclass(told.exc_type, KeyboardInterrupt):
            self.arm(self.number, SOON_SECONDS)
        else:
            self._former(told)

    def _send(self, number: int) -> None:
        self.sent = True
        _thread.interrupt_main(signal.Signals(number))  # to Python alone: a library may have taken the signal from it meanwhile
        signal.pthread_kill(threading.main_thread().ident or 0, WAKING)  # out of whatever it waits in


def _nothing(number: int, frame: FrameType | None) -> None:
    pass


_again = _Again()


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle a signal that asks to stop: raise KeyboardInterrupt; where that is not safe a little later."""
    resent = _again.sent
    later = _unsafe(frame)
    _again.arm(number, SOON_SECONDS if later else SWALLOWED_SECONDS)
    _again.waiting = later
    if not later and not (resent and _raised()):
        raise KeyboardInterrupt


def waiting() -> bool:
    """Whether an interrupt came that could not be raised yet."""
    return _again.waiting


def unheeded() -> bool:
    """Whether an interrupt came that nobody has heeded: what fails now fails because of it, whatever a library makes of it."""
    return _again.timer is not None


def settled() -> None:
    """The interrupt was heeded: it is not raised again."""
    _again.settle()


def _unsafe(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING or frame.f_code.co_name in LOCKING:
            return True
        frame = frame.f_back
    return False


def _raised() -> bool:
    """Whether an interrupt is on its way up, through what cleans up after it."""
    error = sys.exc_info()[1]
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__context__
    return False
