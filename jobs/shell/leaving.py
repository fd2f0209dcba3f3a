"""How the process ends where a library that has given up would keep it: at once. Light, for `main` needs it before all else."""

import os
import sys

_at_once: list[str] = []  # what would keep the process


def leave_at_once(who: str) -> None:
    """From now on the process ends without the libraries' own last acts, for `who` would wait in one of them for ever."""
    _at_once.append(who)


def left(error: BaseException | None) -> None:
    """The command is over: end the process here if that was asked for; otherwise Python ends it as always.

    Args:
        error: what ended the command, None where nothing did.
    """
    if not _at_once:
        return
    code = _told(error)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _told(error: BaseException | None) -> int:
    """Say of what ended the command what Python would, and return the exit code that it would give."""
    if error is None:
        return 0
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
        return 1
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1
