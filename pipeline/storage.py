"""Where a dataset lives: a local folder, or any filesystem that pyarrow or fsspec can name by URI.

A file appears whole or not at all: locally by temporary name, fsync and rename; on an object store by one put. One run at a
time owns a dataset: locally by an flock (which dies with its process, also on SIGKILL), elsewhere by a lease object that its
owner renews.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.fs as pafs

from tsdfm.pipeline.files import write_atomic
from tsdfm.schemas.base import InputError, WorkError

LOCK_FILE = ".lock"
LEASE_SECONDS = 180.0  # a lease this old is dead: six renewals were missed
RENEW_SECONDS = 30.0


@contextlib.contextmanager
def _explained(what: str, uri: str) -> Iterator[None]:
    """Turn an OSError into one line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):
            raise WorkError(f"{uri}: the disk is full; free some space and run the same command to resume") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST):
            raise InputError(f"{uri}: cannot {what} ({error.strerror or error}); give a folder you can write to") from None
        raise WorkError(f"{uri}: cannot {what} ({error.strerror or error})") from None


class Store:
    """A dataset's folder. Paths are POSIX and relative to it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.local: Path | None = None
        if "://" not in uri:
            self.local = Path(uri).absolute()
        elif uri.startswith("file://"):
            self.local = Path(uri.removeprefix("file://"))
        if self.local is None:
            self.filesystem, self.root = _open_uri(uri)
        else:
            self.filesystem, self.root = pafs.LocalFileSystem(), str(self.local)

    def _full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None if there is no such file. Raises WorkError if it is there and can't be read."""
        with _explained("read it", f"{self.uri}/{path}"):
            try:
                with self.filesystem.open_input_stream(self._full(path)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None
            except IsADirectoryError:
                return None

    def write(self, path: str, data: bytes) -> None:
        """Put a file, whole or not at all."""
        with _explained("write there", f"{self.uri}/{path}"):
            if self.local is not None:
                target = self.local / path
                target.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(target, data)
            else:
                self.filesystem.create_dir(self._full(path).rpartition("/")[0], recursive=True)
                with self.filesystem.open_output_stream(self._full(path)) as stream:
                    stream.write(data)

    def remove(self, path: str) -> None:
        """Delete a file if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self._full(path))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; [] if it does not exist."""
        with _explained("list it", f"{self.uri}/{folder}"):
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True)
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    @contextlib.contextmanager
    def owned(self) -> Iterator[None]:
        """Hold the dataset for one run. Raises InputError, naming the owner, if another run holds it."""
        lock = _flock(self.local, self.uri) if self.local is not None else self._lease()
        with lock:
            if self.local is not None:
                self._sweep()
            yield

    def _sweep(self) -> None:
        """Remove temporary files that a killed run left behind."""
        assert self.local is not None
        for folder in (self.local, self.local / "data"):
            for leftover in folder.glob(".*.tmp"):
                leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _lease(self) -> Iterator[None]:
        token, stop = uuid.uuid4().hex, threading.Event()
        held = self.read(LOCK_FILE)
        if held is not None:
            owner = json.loads(held)
            if time.time() - owner["renewed"] < LEASE_SECONDS:
                raise InputError(_busy(self.uri, owner))

        def renew() -> None:
            self.write(LOCK_FILE, json.dumps({**_owner(), "token": token, "renewed": time.time()}).encode())

        def keep_renewing() -> None:
            while not stop.wait(RENEW_SECONDS):
                renew()

        renew()
        seen = json.loads(self.read(LOCK_FILE) or b"{}")
        if seen.get("token") != token:
            raise InputError(_busy(self.uri, seen))
        thread = threading.Thread(target=keep_renewing, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            self.remove(LOCK_FILE)


def through_cache(sha256: str, fetch: Callable[[], bytes]) -> bytes:
    """The bytes that hash to `sha256`: this user's copy, or else those that `fetch` gives and checks, of which one is kept.

    Copies lie in $XDG_CACHE_HOME/tsdfm-pipeline, or ~/.cache/tsdfm-pipeline, and may be deleted at any time; a damaged one is
    replaced, and where none can be written the bytes are fetched each time.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tsdfm-pipeline"
    with contextlib.suppress(OSError):
        data = (folder / sha256).read_bytes()
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
    data = fetch()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / sha256, data)
    return data


def _open_uri(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, root = pafs.FileSystem.from_uri(uri)
    except Exception:  # pyarrow raises several kinds for a scheme it does not know
        import fsspec

        try:
            inner, root = fsspec.core.url_to_fs(uri)
        except Exception as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{uri}: no such filesystem ({reason}); "
                             "give a path or a URI that pyarrow or fsspec knows") from None
        filesystem = pafs.PyFileSystem(pafs.FSSpecHandler(inner))
    return filesystem, root


def _owner() -> dict[str, object]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}


def _busy(uri: str, owner: dict[str, object]) -> str:
    who = f"process {owner.get('pid', '?')} on {owner.get('host', '?')}, since {owner.get('started', '?')}"
    return f"{uri}: another run is writing there ({who}); wait for it, stop it, or give another --out"


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


@contextlib.contextmanager
def _flock(folder: Path, uri: str) -> Iterator[None]:
    path = folder / LOCK_FILE
    with _explained("write there", uri):
        folder.mkdir(parents=True, exist_ok=True)
        handle = _open_locked(path, uri)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(_owner()).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)
