"""What is changed of a text, and what is left out, counted.

A user's text is trained on as it is given: only control characters and exact duplicates of whole documents go, and Unicode
takes one form (NFC). All else is asked for: `Prose` has the rules of the corpus `python`.
"""

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from tsdfm.schemas.terms import Cleaning

MIN_CHARACTERS = 60  # of prose: shorter documents are labels
NULL, EMPTY, DUPLICATE, CONTROL = "null texts", "empty texts", "duplicate documents", "control characters"
REPEATED, SHORT = "repeated lines", f"documents under {MIN_CHARACTERS} characters"

LeftOut = Counter[str]  # what, in words -> how many of it
_PLURAL = re.compile(r"\b(text|document|character|line|file|card)s\b")
_LINE_BREAKS = re.compile("\r\n|[\r\x0b\x0c\x1c-\x1e\x85]")
# All of the category Cc but line break and tab; and halves of surrogate pairs, which are no characters and have no UTF-8.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def told(left_out: Mapping[str, int]) -> str:
    """What was left out, in a few words; '' if nothing was."""
    return ", ".join(counted(number, what) for what, number in sorted(left_out.items()) if number)


def counted(number: int, what: str) -> str:
    """A number of something, which is given in the plural: '2 null texts', '1 null text'."""
    return f"{number:,} {_PLURAL.sub(lambda found: found[1], what, count=1) if number == 1 else what}"


def clean(texts: Iterable[str | None], rules: Cleaning, left_out: LeftOut) -> Iterator[str]:
    """The documents that texts become, in their order; what is left out is counted in `left_out`."""
    change: Callable[[str, LeftOut], str] = Prose() if rules == "prose" else as_given
    seen = Seen(16)
    for text in texts:
        document = _counted(text, change, left_out)
        if document and seen.is_new(document):
            yield document
        elif document:
            left_out[DUPLICATE] += 1


def _counted(text: str | None, change: Callable[[str, LeftOut], str], left_out: LeftOut) -> str:
    """The document of a text; '' if it is left out, which is counted."""
    if text is None:
        left_out[NULL] += 1
    elif not text.strip():
        left_out[EMPTY] += 1
    else:
        return change(text, left_out)
    return ""


def as_given(text: str, left_out: LeftOut) -> str:
    """The text as `plain` has it, whose control characters are counted; '' if nothing is left."""
    text, removed = plain(text)
    if removed:
        left_out[CONTROL] += removed
    if not text.strip():
        left_out[EMPTY] += 1
        return ""
    return text


def plain(text: str) -> tuple[str, int]:
    """The text in NFC, without control characters: those that break a line become a line break, others but tabs go, so many.

    Format characters (joiners, soft hyphens, marks of direction) are text, and stay.
    """
    text, removed = _CONTROLS.subn("", _LINE_BREAKS.sub("\n", text))
    return unicodedata.normalize("NFC", text), removed


class Prose:
    """Blanks folded, lines that occurred before dropped, then documents that are too short: for text scraped of labels."""

    def __init__(self) -> None:
        self._seen = Seen(8)

    def __call__(self, text: str, left_out: LeftOut) -> str:
        """The document of the next text; '' if none is left."""
        folded = re.sub(r"[ \t]+", " ", as_given(text, left_out)).strip()
        lines = [line for line in folded.split("\n") if line]
        kept = [line for line in lines if self._is_new(line)]
        left_out[REPEATED] += len(lines) - len(kept)
        document = "\n".join(kept)
        if len(document) >= MIN_CHARACTERS:
            return document
        left_out[SHORT] += bool(document)
        return ""

    def _is_new(self, line: str) -> bool:
        return self._seen.is_new(" ".join(line.lower().split()))


class Seen:
    """Which texts occurred before, told by digests of `size` bytes: a set of them would take six times the memory.

    The first two bytes of a digest say which of 65,536 runs of bytes holds the others.
    """

    def __init__(self, size: int) -> None:
        self._size, self._rests = size, defaultdict[bytes, bytearray](bytearray)

    def is_new(self, text: str) -> bool:
        """Whether a text occurs for the first time; from now on it has occurred."""
        digest = hashlib.blake2b(text.encode(), digest_size=self._size).digest()
        rest, found = digest[2:], self._rests[digest[:2]]
        at = found.find(rest)
        while at % len(rest) and at >= 0:  # the end of one digest and the beginning of the next
            at = found.find(rest, at + 1)
        if at < 0:
            found += rest
        return at < 0
