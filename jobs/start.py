"""Where the installed command starts: Ctrl-C gets its meaning here, before anything else is loaded."""

import signal

from tsdfm.jobs.shell.stop import interrupt


def main() -> None:
    """Entry point of the command."""
    signal.signal(signal.SIGINT, interrupt)
    from tsdfm.jobs.cli import main

    main()
