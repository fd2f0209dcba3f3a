"""Where a dataset lives: a local folder, or any filesystem that pyarrow or fsspec can name by URI.

A file appears whole or not at all: locally by temporary name, fsync and rename; on an object store by one put.
`open_store.open_store` finds the store of a name.
"""

import contextlib
import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from tsdfm.pipeline.storage.atomic import move_atomic, write_atomic
from tsdfm.pipeline.storage.lease import lease
from tsdfm.pipeline.storage.locks import flock
from tsdfm.pipeline.storage.object_store import OBJECT_STORES, conditional_of, filesystem_of
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.regular import open_regular, read_regular

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, or none that this user may have


class Store(ABC):
    """A dataset's folder. Paths are POSIX and relative to it. It travels to other processes by its address."""

    uri: str  # of the folder, as people may read it: without the secrets that may open it
    address: str  # opens it again, from wherever; may hold secrets, so it is told to workers only
    local: Path | None = None  # where it is on this machine's disk, if it is
    cached = True  # whether a file that was read once is on this machine from then on

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """The file's bytes, or None if there is no such file. Raises WorkError if it is there and can't be read."""

    def open(self, path: str) -> pa.NativeFile | None:
        """The file to read from, wherever in it, or None if there is no such file. Raises as `read`."""
        data = self.read(path)
        return None if data is None else pa.BufferReader(data)

    def stamp(self, path: str) -> str | None:
        """What changes whenever a file is written: its size, and when it was, or its etag. None: nothing known.

        Costs no reading of the file. Equal stamps mean the same file, different ones nothing.
        """
        return None

    @abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Put a file, whole or not at all. Raises InputError or WorkError."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete a file if it exists."""

    @abstractmethod
    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in `folder`, sorted; [] if it does not exist."""

    @abstractmethod
    def below(self, folder: str) -> set[str]:
        """The paths of all files in `folder` and in the folders of it; none if it does not exist."""

    @abstractmethod
    def move(self, source: str, target: str) -> None:
        """Give a file another path; what is there is replaced. Raises InputError or WorkError."""

    @abstractmethod
    def inside(self, folder: str) -> "Store":
        """A folder of this one as a store."""

    @abstractmethod
    def owned(self, progress: Progress = unheard) -> AbstractContextManager[Callable[[], None]]:
        """Hold the dataset for one run. Raises InputError, naming the owner, if another run holds it.

        Yields a check, which raises WorkError once the dataset is another run's: ask it before anything is committed.
        """


@contextlib.contextmanager
def explained(what: str, uri: str) -> Iterator[None]:
    """Turn an OSError into one line: InputError where another folder would do, else WorkError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL or "No space left" in str(error):
            raise WorkError(f"{uri}: the disk is full; free some space and run the same command to resume") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST,
                           errno.ENAMETOOLONG):
            raise InputError(f"{uri}: cannot {what} ({error.strerror or error}); give a folder you can write to") from None
        raise WorkError(f"{uri}: cannot {what} ({error.strerror or error})") from None


class LocalStore(Store):
    """A folder of this machine, or of a disk that it shares."""

    local: Path

    def __init__(self, folder: Path, uri: str | None = None) -> None:
        self.local = folder.absolute()
        self.uri = str(folder) if uri is None else uri
        self.address = uri if uri is not None and uri.startswith("file:///") else str(self.local)

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalStore, (self.local, self.uri)

    def _at(self, path: str) -> Path:
        return self.local / path

    def read(self, path: str) -> bytes | None:
        """See `Store.read`."""
        with explained("read it", f"{self.uri}/{path}"):
            try:
                return read_regular(self._at(path))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def open(self, path: str) -> pa.NativeFile | None:
        """See `Store.open`."""
        with explained("read it", f"{self.uri}/{path}"):
            try:
                return pa.PythonFile(open_regular(self._at(path)), mode="r")
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                return None

    def stamp(self, path: str) -> str | None:
        """See `Store.stamp`."""
        with contextlib.suppress(OSError):
            found = self._at(path).stat()
            return f"{found.st_size} {found.st_mtime_ns}"
        return None

    def write(self, path: str, data: bytes) -> None:
        """See `Store.write`."""
        with explained("write there", f"{self.uri}/{path}"):
            self._at(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._at(path), data)

    def remove(self, path: str) -> None:
        """See `Store.remove`."""
        with explained("delete it", f"{self.uri}/{path}"):
            self._at(path).unlink(missing_ok=True)
        self._leave(path)

    def _leave(self, path: str) -> None:
        """Remove the folders of a file that is gone: folders are there for their files. Those that hold others stay."""
        with contextlib.suppress(OSError):
            while "/" in path:
                path = path.rpartition("/")[0]
                self._at(path).rmdir()

    def names(self, folder: str = "") -> list[str]:
        """See `Store.names`."""
        with explained("list it", f"{self.uri}/{folder}"):
            try:
                return sorted(entry.name for entry in self._at(folder).iterdir())
            except FileNotFoundError:
                return []

    def below(self, folder: str) -> set[str]:
        """See `Store.below`."""
        with explained("list it", f"{self.uri}/{folder}"):
            return {path.relative_to(self.local).as_posix() for path in self._at(folder).rglob("*") if not path.is_dir()}

    def move(self, source: str, target: str) -> None:
        """See `Store.move`."""
        with explained("write there", f"{self.uri}/{target}"):
            self._at(target).parent.mkdir(parents=True, exist_ok=True)
            move_atomic(self._at(source), self._at(target))
        self._leave(source)

    def inside(self, folder: str) -> "LocalStore":
        """See `Store.inside`."""
        return LocalStore(self._at(folder), f"{self.uri}/{folder}")

    @contextlib.contextmanager
    def owned(self, progress: Progress = unheard) -> Iterator[Callable[[], None]]:
        """See `Store.owned`. A lock can't be lost. Temporary files that a killed run left behind are removed."""
        with explained("write there", self.uri):
            self.local.mkdir(parents=True, exist_ok=True)
            held = contextlib.ExitStack()
            held.enter_context(flock(self.local, self.uri))
        with held:
            for folder in (self.local, self.local / "data", *self.local.glob("data/*/"), *self.local.glob(".parts/*/")):
                for leftover in folder.glob(".*.tmp"):
                    leftover.unlink(missing_ok=True)
            yield _still_owned


class UriStore(Store):
    """A folder on a filesystem that pyarrow or fsspec knows by URI, e.g. an object store."""

    cached = False

    def __init__(self, address: str) -> None:
        self.address, self.uri = address, redacted(address)
        self.filesystem, self.root, self._fsspec = filesystem_of(address)

    def __reduce__(self) -> tuple[Any, ...]:
        return UriStore, (self.address,)

    def _full(self, path: str) -> str:
        return f"{self.root.rstrip('/')}/{path}" if path else self.root

    def read(self, path: str) -> bytes | None:
        """See `Store.read`."""
        with explained("read it", f"{self.uri}/{path}"):
            try:
                with self.filesystem.open_input_stream(self._full(path)) as stream:
                    return bytes(stream.read())
            except (FileNotFoundError, IsADirectoryError):
                return None

    def open(self, path: str) -> pa.NativeFile | None:
        """See `Store.open`."""
        with explained("read it", f"{self.uri}/{path}"):
            try:
                return self.filesystem.open_input_file(self._full(path))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def stamp(self, path: str) -> str | None:
        """See `Store.stamp`."""
        with explained("read it", f"{self.uri}/{path}"):
            if self._fsspec is not None:
                with contextlib.suppress(FileNotFoundError):
                    info = self._fsspec.info(self._full(path))
                    tag = info.get("ETag") or info.get("etag") or info.get("mtime")
                    return f"{info['size']} {tag}" if tag else None
                return None
            found = self.filesystem.get_file_info(self._full(path))
            return f"{found.size} {found.mtime_ns}" if found.mtime_ns else None

    def write(self, path: str, data: bytes) -> None:
        """See `Store.write`."""
        with explained("write there", f"{self.uri}/{path}"):
            self._make_folder_of(path)
            with self.filesystem.open_output_stream(self._full(path)) as stream:
                stream.write(data)

    def _make_folder_of(self, path: str) -> None:
        if self.filesystem.type_name not in OBJECT_STORES:
            self.filesystem.create_dir(self._full(path).rpartition("/")[0], recursive=True)

    def remove(self, path: str) -> None:
        """See `Store.remove`."""
        with explained("delete it", f"{self.uri}/{path}"), contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self._full(path))

    def names(self, folder: str = "") -> list[str]:
        """See `Store.names`."""
        with explained("list it", f"{self.uri}/{folder}"):
            if self._fsspec is not None:
                self._fsspec.invalidate_cache()  # what others wrote counts
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True)
            return sorted(info.base_name for info in self.filesystem.get_file_info(selector))

    def below(self, folder: str) -> set[str]:
        """See `Store.below`."""
        with explained("list it", f"{self.uri}/{folder}"):
            if self._fsspec is not None:
                self._fsspec.invalidate_cache()
            selector = pafs.FileSelector(self._full(folder), allow_not_found=True, recursive=True)
            found = [info.path for info in self.filesystem.get_file_info(selector) if info.type == pafs.FileType.File]
            start = len(self._full(folder))
            return {f"{folder}/{path[start:].lstrip('/')}" for path in found}

    def modified(self, path: str) -> float | None:
        """When a file was written, in seconds of the store's own clock; None if there is no such file or no such clock."""
        with explained("read it", f"{self.uri}/{path}"):
            try:
                if self._fsspec is not None:
                    return float(self._fsspec.modified(self._full(path)).timestamp())
                found = self.filesystem.get_file_info(self._full(path)).mtime
            except (FileNotFoundError, NotImplementedError):
                return None
            return None if found is None else float(found.timestamp())

    def move(self, source: str, target: str) -> None:
        """See `Store.move`."""
        with explained("write there", f"{self.uri}/{target}"):
            self._make_folder_of(target)
            self.filesystem.move(self._full(source), self._full(target))

    def inside(self, folder: str) -> "UriStore":
        """See `Store.inside`."""
        place, mark, query = self.address.partition("?")
        return UriStore(f"{place.rstrip('/')}/{folder}{mark}{query}")

    def owned(self, progress: Progress = unheard) -> AbstractContextManager[Callable[[], None]]:
        """See `Store.owned`."""
        return lease(self, progress, conditional_of(self.address, self.filesystem, self.root))


def _still_owned() -> None:
    """The check of a lock, which can't be lost."""
