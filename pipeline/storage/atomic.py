"""Files that are either whole or absent: temporary name, fsync, rename."""

import hashlib
import os
import uuid
from pathlib import Path

from tsdfm.schemas.regular import open_regular


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`; a crash leaves the old file or none. The parent folder must exist."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


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
