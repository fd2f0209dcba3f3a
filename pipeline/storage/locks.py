"""One run at a time owns a dataset: an flock on a local folder, a lease object elsewhere.

An flock dies with its process, also on SIGKILL. A lease is an object that its owner renews; one that was not renewed for
LEASE_SECONDS is dead.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from tsdfm.schemas.base import InputError

LOCK_FILE = ".lock"
LEASE_SECONDS = 180.0  # a lease this old is dead: six renewals were missed
RENEW_SECONDS = 30.0


class Files(Protocol):
    """Whatever holds small files by path: what a lease needs of a store."""

    uri: str

    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None."""

    def write(self, path: str, data: bytes) -> None:
        """Put a file, whole or not at all."""

    def remove(self, path: str) -> None:
        """Delete a file if it exists."""


@contextlib.contextmanager
def flock(folder: Path, uri: str) -> Iterator[None]:
    """Hold a local folder, which must exist. Raises InputError, naming the owner, if another process holds it."""
    path = folder / LOCK_FILE
    handle = _open_locked(path, uri)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_owner()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


@contextlib.contextmanager
def lease(files: Files) -> Iterator[None]:
    """Hold a dataset on an object store. Raises InputError, naming the owner, if another run holds it."""
    token, stop = uuid.uuid4().hex, threading.Event()
    held = files.read(LOCK_FILE)
    if held is not None:
        owner = json.loads(held)
        if time.time() - owner["renewed"] < LEASE_SECONDS:
            raise InputError(_busy(files.uri, owner))

    def renew() -> None:
        files.write(LOCK_FILE, json.dumps({**_owner(), "token": token, "renewed": time.time()}).encode())

    def keep_renewing() -> None:
        while not stop.wait(RENEW_SECONDS):
            renew()

    renew()
    seen = json.loads(files.read(LOCK_FILE) or b"{}")
    if seen.get("token") != token:
        raise InputError(_busy(files.uri, seen))
    thread = threading.Thread(target=keep_renewing, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        files.remove(LOCK_FILE)


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
            raise InputError(_busy(uri, json.loads(held) if held else {})) from None
        os.close(handle)


def _owner() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _busy(uri: str, owner: dict[str, object]) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, since {owner.get('started', '?')}"
    return f"{uri}: another run is writing there ({who}); wait for it, stop it, or give another --out"
