"""Which part of a corpus a document is in: told by what it holds, whatever else is in the corpus, and in whichever order.

2 % are held out, and the rest falls into two halves, `first` and `second`, so that a compass and its judge never share a
document.
"""

import hashlib
from typing import Literal

from tsdfm.schemas.terms import CorpusPart

HELD_OUT_PERCENT = 2
Split = Literal["held_out", "first", "second"]
Part = CorpusPart | Literal["held_out"]
_SPLITS_OF: dict[str, frozenset[str]] = {"all": frozenset({"first", "second"})}  # of other parts: the part itself


def split_of(text: str, held_out_percent: int = HELD_OUT_PERCENT) -> Split:
    """'held_out', 'first' or 'second': a function of the text alone."""
    bucket = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    if bucket % 100 < held_out_percent:
        return "held_out"
    return "first" if bucket // 100 % 2 else "second"


def splits_of(part: Part) -> frozenset[str]:
    """The splits that make a part. `all` is both halves, all that may be trained on: held-out documents never are in it."""
    return _SPLITS_OF.get(part, frozenset({part}))
