"""Where the command starts: Ctrl-C has its meaning before anything else is loaded."""

import signal

from tsdfm.jobs.shell.signals import STOPPING, interrupt


def main() -> None:
    """Entry point of the installed command."""
    for number in STOPPING:
        signal.signal(number, interrupt)
    from tsdfm.jobs.cli import main

    main()
