"""The plain bytes of a file, compressed or not. What compresses it is told by its content, and a name that says otherwise is
refused. A file may hold any number of compressed streams; an end in the middle of one, or anything else behind one, is never
taken for the end of the text."""

import bz2
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import zstandard

from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.regular import open_regular

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard", ".zstd": "Zstandard"}
READ_BYTES = 1 << 12  # at once: few, for what they become is held, and may be thirty thousand times as much
ZSTD_WINDOW = 1 << 31  # the longest of the format, for --long archives
LOOKED_AT = 1 << 27  # plain bytes behind a fault that are read to see whether it is one of the compressed data
FAULTS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)  # of files, and of compressed data
CUT = "ends in the middle of its compressed data; download or copy it anew"
PADDING = {"gzip": 1, "xz": 4}  # zero bytes behind a stream come in multiples of so many; behind others there are none
_BEGINNINGS = {  # of files; the longest is 10 bytes
    "gzip": re.compile(rb"\x1f\x8b\x08"), "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"), "Zstandard": re.compile(rb"(\x28\xb5|[\x50-\x5f]\x2a)(\x2f\xfd|\x4d\x18)"),
}


def bare_name(path: Path) -> str:
    """A file's name in lower case, without the suffix that says how it is compressed."""
    name = path.name.lower()
    suffix = next((each for each in SUFFIXES if name.endswith(each)), "")
    return name.removesuffix(suffix)


class _Decompressor(Protocol):
    """Of one stream; the libraries raise one of FAULTS where its data is damaged."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


_DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "gzip": lambda: zlib.decompressobj(zlib.MAX_WBITS | 16), "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
    "Zstandard": lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj(),
}


@contextmanager
def plain_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, as a stream. Raises InputError, also while it is read, naming the file.

    Checksums stand behind the data. So where the text is at fault the rest is read first, for the data may be.
    """
    try:
        with open_regular(path) as raw:
            kind = _kind(path, raw)
            if kind is None:
                yield raw
                return
            streams = _Streams(kind, raw)
            try:
                yield io.BufferedReader(streams)
            except (UnicodeDecodeError, InputError):
                streams.look_through(LOOKED_AT)
                raise
    except EOFError:
        raise InputError(f"{path}: {CUT}") from None
    except _Damaged as error:
        raise InputError(f"{path}: its compressed data is damaged ({error}); download or copy it anew") from None
    except FAULTS as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); check the file") from None


def _kind(path: Path, raw: IO[bytes]) -> str | None:
    """What the beginning of a file says that it is compressed with. Raises InputError if its name says something else."""
    beginning = raw.read(10)
    raw.seek(0)
    found = next((kind for kind, pattern in _BEGINNINGS.items() if pattern.match(beginning)), None)
    suffix = path.suffix.lower()
    named = SUFFIXES.get(suffix)
    if named not in (None, found):
        what = "is empty" if not beginning else f"holds {found} data" if found else f"holds no {named} data"
        raise InputError(f"{path}: is named {suffix} and {what}; rename it, or download or copy it anew")
    return found


class _Damaged(Exception):
    """Compressed data that is none, or not as it was made."""


class _Streams(io.RawIOBase):
    """The plain bytes of a file of any number of compressed streams. Raises EOFError where it ends in the middle of one, and
    _Damaged."""

    def __init__(self, kind: str, raw: IO[bytes]) -> None:
        self._kind, self._raw, self._ready = kind, raw, memoryview(b"")
        self._stream = _DECOMPRESSORS[kind]()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; 0 at the end."""
        while not self._ready:
            data = self._between() if self._stream.eof else self._raw.read(READ_BYTES)
            if not data:
                if not self._stream.eof:
                    raise EOFError
                return 0
            if self._stream.eof:
                self._stream = _DECOMPRESSORS[self._kind]()
            try:
                self._ready = memoryview(self._stream.decompress(data))
            except FAULTS as error:
                raise _Damaged(first_line(error)) from None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def _between(self) -> bytes:
        """The beginning of the next stream, b"" at the end of the file; zero bytes before it are passed over."""
        step, zeros, data = PADDING.get(self._kind), 0, self._stream.unused_data or self._raw.read(READ_BYTES)
        while step and data:
            rest = data.lstrip(b"\0")
            zeros += len(data) - len(rest)
            if rest:
                data = rest
                break
            data = self._raw.read(READ_BYTES)
        if zeros and (zeros % (step or 1) or (data and self._kind == "gzip")):  # gzip's fill up the last block of a tape
            raise _Damaged(f"{zeros:,} zero bytes stand in the middle")
        return data

    def look_through(self, limit: int) -> None:
        """Read on to the end, or so many bytes. Raises as `readinto`."""
        buffer = memoryview(bytearray(1 << 16))
        while limit > 0 and (count := self.readinto(buffer)):
            limit -= count
