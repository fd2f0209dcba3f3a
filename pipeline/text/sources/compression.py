"""The plain bytes of a file, compressed or not. What compresses it is told by its content, and a name that says otherwise is
refused; an end in the middle of the compressed data is never taken for the end of the text."""

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.regular import open_regular

SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard", ".zstd": "Zstandard"}
# Bytes read at once: few, for what they become is held, and may be thirty thousand times as much; and the longest window of the
# format, for --long archives.
ZSTD_READ, ZSTD_WINDOW = 1 << 12, 1 << 31
FAULTS = (EOFError, OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError)  # of files, and of compressed data
CUT = "ends in the middle of its compressed data; download or copy it anew"
_BEGINNINGS = {  # of files; the longest is 10 bytes
    "gzip": re.compile(rb"\x1f\x8b\x08"), "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"), "Zstandard": re.compile(rb"(\x28\xb5|[\x50-\x5f]\x2a)(\x2f\xfd|\x4d\x18)"),
}


def bare_name(path: Path) -> str:
    """A file's name in lower case, without the suffix that says how it is compressed."""
    name = path.name.lower()
    suffix = next((each for each in SUFFIXES if name.endswith(each)), "")
    return name.removesuffix(suffix)


@contextmanager
def plain_bytes(path: Path) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file, as a stream. Raises InputError, also while it is read, naming the file."""
    try:
        with open_regular(path) as raw:
            kind = _kind(path, raw)
            with _READERS[kind](raw) if kind else raw as stream:
                yield cast(IO[bytes], stream)
    except EOFError:
        raise InputError(f"{path}: {CUT}") from None
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


class _Zstd(io.RawIOBase):
    """The plain bytes of a Zstandard file of any number of frames. Raises EOFError where it ends in the middle of one."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._raw, self._ready = raw, memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; 0 at the end."""
        while not self._ready:
            rest = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = rest or self._raw.read(ZSTD_READ)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            self._ready = memoryview(self._frame.decompress(data))
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


_READERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda raw: gzip.GzipFile(fileobj=raw), "bzip2": bz2.BZ2File, "xz": lzma.LZMAFile,
    "Zstandard": lambda raw: io.BufferedReader(_Zstd(raw)),
}
