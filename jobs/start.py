"""Where the command starts: Ctrl-C has its meaning before anything else is loaded."""

import signal

from tsdfm.jobs.shell.signals import interrupt


def main() -> None:
    """Entry point of the installed command."""
    signal.signal(signal.SIGINT, interrupt)
    from tsdfm.jobs.cli import main

    main()
