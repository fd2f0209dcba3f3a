"""A file that is read once: decoded from front to back, and hashed as it goes by."""

import hashlib
import io
from collections.abc import Iterator

import pyarrow as pa

END_BYTES = 1 << 16  # of a file, where Parquet has its footer: what pyarrow asks for first
PIECE_BYTES = 1 << 22  # that are asked of a file at a time, and held


class ReadOnce:
    """A file to decode from, each byte of which is asked of its store once, and hashed as it goes by.

    Its end is read first, and held; all before it is read in pieces, in order, of which the last is held. What a reader skips
    is read, too. A reader that goes back further is given what it asks for, at the price of reading that again; no sound
    Parquet file needs it, if its row groups are taken in order, by one thread, without pre-buffering.

    `file` is what to decode from. Its end may be asked for after the file itself has been closed.
    """

    def __init__(self, file: pa.NativeFile) -> None:
        self._source, self.size = file, int(file.size())
        self._end_at = max(0, self.size - END_BYTES)
        self._end = self._ask(self._end_at, self.size)
        self._hash, self._passed, self._piece = hashlib.sha256(), 0, b""
        self._digest: str | None = None
        self.file = pa.PythonFile(_Cursor(self), mode="r")

    def sha256(self) -> str:
        """sha256 of all of the file, hex: what has not gone by yet is read now."""
        if self._digest is None:
            while self._passed < self._end_at:
                self._next()
            self._hash.update(self._end)
            self._digest, self._piece = self._hash.hexdigest(), b""
        return self._digest

    def between(self, start: int, stop: int) -> bytes:
        """The bytes start..stop-1, or those of them that the file has."""
        head = min(stop, self._end_at)
        if start < min(head, self._passed - len(self._piece)):
            front = self._ask(start, head)
        else:
            front = b"".join(self._forward(start, head))
        return front + self._end[max(0, start - self._end_at): max(0, stop - self._end_at)]

    def _forward(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            if start < self._passed:
                held = self._passed - len(self._piece)
                yield self._piece[start - held: stop - held]
                start = self._passed
            else:
                self._next()

    def _next(self) -> None:
        """Read the next piece of what lies before the end that is held."""
        stop = min(self._passed + PIECE_BYTES, self._end_at)
        self._piece = self._ask(self._passed, stop)
        self._hash.update(self._piece)
        self._passed = stop

    def _ask(self, start: int, stop: int) -> bytes:
        self._source.seek(start)
        data = bytes(self._source.read(stop - start))
        if len(data) < stop - start:
            raise OSError(f"ended after {start + len(data)} of {self.size} bytes: it was changed while it was read")
        return data


class _Cursor(io.RawIOBase):
    """A `ReadOnce` as Python's libraries read files."""

    def __init__(self, once: ReadOnce) -> None:
        self._once, self._at = once, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._once.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        data = self._once.between(self._at, self._once.size if size < 0 else self._at + size)
        self._at += len(data)
        return data
