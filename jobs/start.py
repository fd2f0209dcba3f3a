"""Where the command starts: Ctrl-C has its meaning before anything else is loaded."""

import atexit
import io
import os
import signal
import sys

from tsdfm.jobs.shell.signals import CODE, INTERRUPTED, STOPPING, interrupt, settled


def main() -> None:
    """Entry point of the installed command."""
    _open_streams()
    atexit.register(_done)  # the first to be registered is the last to be called
    for number in STOPPING:
        signal.signal(number, interrupt)
    try:
        from tsdfm.jobs.cli import main

        main()
    except KeyboardInterrupt:  # on the way to what tells it
        settled()
        sys.stderr.write(f"Error: {INTERRUPTED}\n")
        sys.exit(CODE)


def _open_streams() -> None:
    """A standard stream that was closed (`2>&-`) leads nowhere; one that lacks a character gets it as \\u2019, say.

    Otherwise the next file that is opened would get its number, and with it whatever a library writes to standard error.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            mode = os.O_WRONLY if number else os.O_RDONLY
            os.open(os.devnull, mode)  # gets the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _done() -> None:
    """All is done and the exit code is decided: a signal changes nothing any more."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
