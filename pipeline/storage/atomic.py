"""Files that are either whole or absent: temporary name, fsync, rename."""

import errno
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tsdfm.schemas.regular import open_regular


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`; a crash leaves the old file or none. The parent folder must exist."""
    with writing_atomic(path) as file:
        file.write(data)


@contextmanager
def writing_atomic(path: Path) -> Iterator[BinaryIO]:
    """A file to be written piece by piece: it is at `path`, and whole, once the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def move_atomic(source: Path, target: Path) -> None:
    """Give a file another path, on another disk, too; what is there is replaced. A crash leaves it whole, at one or both."""
    try:
        source.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with open_regular(source) as held, writing_atomic(target) as file:
            shutil.copyfileobj(held, file)
        source.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, hex. Raises OSError if there is no such regular file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
