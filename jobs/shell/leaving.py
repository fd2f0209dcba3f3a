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
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_code(error))


def _code(error: BaseException | None) -> int:
    """The exit code that Python would give."""
    if error is None:
        return 0
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
