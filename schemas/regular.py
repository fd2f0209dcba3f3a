"""The one way by which input files are opened: regular files only.

A named pipe would block for ever, a device never ends, and a folder gives a different error in every library. Whatever is read
here is looked at after it has been opened, so nothing can be put in its place in between.
"""

import errno
import io
import os
import stat
from pathlib import Path


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file to read its bytes. Raises OSError, IsADirectoryError for a folder: not there, or not a regular file."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe, too, is opened without waiting for a writer
    try:
        _refuse_irregular(os.fstat(handle).st_mode, path)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: Path) -> bytes:
    """All bytes of a file. Raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_regular(path: Path) -> None:
    """For files that a library opens by name: raises OSError as `open_regular`."""
    _refuse_irregular(path.stat().st_mode, path)


def _refuse_irregular(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
