"""One run at a time owns a dataset: an flock on a local folder. It dies with its process, also on SIGKILL.

Stores that have no locks hold leases instead (`lease.py`).
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from tsdfm.schemas.base import InputError

LOCK_FILE = ".lock"


@contextlib.contextmanager
def flock(folder: Path, uri: str) -> Iterator[None]:
    """Hold a local folder, which must exist. Raises InputError, naming the owner, if another process holds it."""
    path = folder / LOCK_FILE
    handle = _open_locked(path, uri)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(this_process()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _open_locked(path: Path, uri: str) -> int:
    """Open and lock the lock file; a file that its former owner unlinked in between does not count."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.fstat(handle).st_ino == path.stat().st_ino:
                    return handle
        except BlockingIOError:
            held = os.pread(handle, 4096, 0)
            os.close(handle)
            raise InputError(f"{uri}: another run is writing there ({owner_of(held)}); wait for it, stop it, or give another "
                             "--out") from None
        os.close(handle)


def this_process() -> dict[str, object]:
    """What a lock or lease says of who holds it."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def fields_of(held: bytes | None) -> Mapping[str, object]:
    """What a lock or lease says; {} if it is empty or damaged."""
    with contextlib.suppress(ValueError):
        found = json.loads(held or b"")
        if isinstance(found, dict):
            return found
    return {}


def owner_of(held: bytes | None) -> str:
    """Who holds a lock or lease, as people may read it."""
    owner = fields_of(held)
    return f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, since {owner.get('started', '?')}"
