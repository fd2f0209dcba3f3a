"""The items of a JSON array of any length, one after another: the library parses a document only as a whole."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tsdfm.schemas.base import InputError

CHARACTERS_AT_ONCE = 1 << 20
LONGEST_ITEM = 1 << 27  # characters
LONGEST_WORD = 16  # characters: what may be cut at the end of what is held, a literal or an escape
_BLANK = re.compile(r"[ \t\r\n]*")


def not_json(path: Path, number: int, error: Exception) -> InputError:
    """What to say of text that is no JSON; `number` is the line of the file at which it begins."""
    reason = "nested too deeply" if isinstance(error, RecursionError) else "a number of too many digits"  # Python's limit
    at, reason = number + getattr(error, "lineno", 1) - 1, getattr(error, "msg", reason)
    return InputError(f"{path}:{at}: not JSON ({reason}); mend or remove the line")


def array_items(path: Path, begin: str, rest: IO[str], number: int) -> Iterator[Any]:
    """The items of an array.

    Args:
        path: of the file, for messages.
        begin: what was read of it, from its '[' on, blanks before that.
        rest: what comes after.
        number: the line of the file at which `begin` begins.

    Raises InputError, naming the line, where it is no JSON, or an item is too long.
    """
    text = _Text(path, begin, rest, number)
    text.take("[")
    if text.peek() != "]":
        yield text.item()
        while text.peek() != "]":
            text.take(",")
            yield text.item()
    text.take("]")
    if text.peek():
        raise text.fault("Extra data")


class _Text:
    """A text of which only a part is held, from the position `at` on."""

    def __init__(self, path: Path, begin: str, rest: IO[str], number: int) -> None:
        self._path, self._held, self._rest, self._number, self._at = path, begin, rest, number, 0
        self._decoder = json.JSONDecoder()

    def fault(self, reason: str) -> InputError:
        """What is wrong here."""
        return not_json(self._path, self._number, json.JSONDecodeError(reason, self._held, self._at))

    def peek(self) -> str:
        """The next character that is no blank; '' at the end."""
        while True:
            self._at = _BLANK.match(self._held, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._held) or not self._more(CHARACTERS_AT_ONCE):
                return self._held[self._at : self._at + 1]

    def take(self, character: str) -> None:
        """Go behind the next character. Raises InputError if it is another."""
        if self.peek() != character:
            raise self.fault(f"Expecting '{character}' delimiter")
        self._at += 1

    def item(self) -> Any:
        """The next value. Raises InputError."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._held, self._at)
            except (ValueError, RecursionError) as error:
                fault, held = not_json(self._path, self._number, error), len(self._held) - self._at
                if held > LONGEST_ITEM:
                    raise self.fault(f"an item of more than {LONGEST_ITEM:,} characters") from None
                # Twice as much each time, so that what is parsed again adds up to little.
                if self._is_wrong(error) or not self._more(max(CHARACTERS_AT_ONCE, held)):
                    raise fault from None
            else:
                self._at = end
                return value

    def _is_wrong(self, error: Exception) -> bool:
        """Whether an error is none that more of the text could mend."""
        return (isinstance(error, json.JSONDecodeError) and error.pos < len(self._held) - LONGEST_WORD
                and not error.msg.startswith("Unterminated"))

    def _more(self, characters: int) -> bool:
        """Read on, and forget what is done with. Returns False at the end."""
        more = self._rest.read(characters)
        self._number += self._held.count("\n", 0, self._at)
        self._held, self._at = self._held[self._at :] + more, 0
        return bool(more)
