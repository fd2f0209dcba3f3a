"""Where the command starts: Ctrl-C has its meaning before anything else is loaded."""

import atexit
import signal

from tsdfm.jobs.shell.signals import STOPPING, interrupt


def main() -> None:
    """Entry point of the installed command."""
    atexit.register(_done)  # the first to be registered is the last to be called
    for number in STOPPING:
        signal.signal(number, interrupt)
    from tsdfm.jobs.cli import main

    main()


def _done() -> None:
    """All is done and the exit code is decided: a signal changes nothing any more."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
