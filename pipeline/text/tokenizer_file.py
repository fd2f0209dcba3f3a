"""Open a tokenizer.json of anybody's: its cost is bounded before it is parsed.

A tokenizer is a small program. Forty normalizers that each double a letter make a text of a letter a million times a million
letters long, and parsing alone runs them, over the added tokens. So the steps that can lengthen a text are tried one by one,
on all the characters that they and the added tokens are about, and a tokenizer under which that grows too long is refused.
Where a checksum of the file is on record, compare that first.
"""

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.regular import open_regular

MAX_BYTES = 1 << 28  # eight times the largest that is known of
SAMPLE = "a Bc 1.\n\té日🦊"
GROWN, GROWTH = 1 << 16, 16  # characters that a probe may become: so many, and so many times its own
MAX_STEPS = 256  # in each part of a tokenizer
MAX_PRE_TOKENIZERS, MAX_BYTE_LEVELS, MAX_CHARACTER_MAPS, MAX_COPIES = 16, 4, 4, 16  # what else lengthens a text, or its tokens
PARTS = ("normalizers", "pretokenizers", "processors", "decoders")  # what a step of type Sequence is made of


def open_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of a file. Raises OSError (not there, or no regular file) or InputError (as `parse_tokenizer`)."""
    with open_regular(file) as opened:
        return parse_tokenizer(opened.read(MAX_BYTES + 1), str(file))


def parse_tokenizer(data: bytes, where: str) -> Tokenizer:
    """A tokenizer of the bytes of its JSON; `where`: how messages name it.

    Raises InputError: no tokenizer of the tokenizers library, or one that is too large, or lengthens texts without bound.
    """
    if len(data) > MAX_BYTES:
        raise InputError(f"{where}: is larger than {MAX_BYTES:,} bytes, which no tokenizer is; give another")
    try:
        _check_cost(json.loads(data), where)
        return Tokenizer.from_str(data.decode())
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception on bad JSON, and anything may be in the place of anything
        raise InputError(f"{where}: not a tokenizer of the tokenizers library ({first_line(error)}); make it anew") from None


def _check_cost(data: Any, where: str) -> None:
    """Raises InputError for steps that lengthen texts without bound, or too many of them; anything for what is no tokenizer."""
    steps = {name: list(_steps(data.get(name))) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")}
    kinds = {name: [step["type"] for step in part] for name, part in steps.items()}
    copies = prod(max(1, sum("Sequence" in piece for piece in step["single"]))
                  for step in steps["post_processor"] if step["type"] == "TemplateProcessing")
    if (max(map(len, steps.values())) > MAX_STEPS or len(kinds["pre_tokenizer"]) > MAX_PRE_TOKENIZERS
            or kinds["pre_tokenizer"].count("ByteLevel") > MAX_BYTE_LEVELS
            or kinds["normalizer"].count("Precompiled") > MAX_CHARACTER_MAPS or copies > MAX_COPIES):
        raise InputError(f"{where}: has more steps than a tokenizer needs, each of which can lengthen a text; give another")
    added = [str(token["content"]) for token in data.get("added_tokens") or () if token.get("normalized")]
    for name in ("normalizer", "decoder"):
        # Other decoders only join tokens; what they add does not add up.
        growing = [step for step in steps[name] if name == "normalizer" or step["type"] == "Replace"]
        words = [text for step in growing if step["type"] == "Replace" for text in (_pattern(step), str(step["content"]))]
        _try(growing, "".join([SAMPLE, *words, *(str(step.get("prepend", "")) for step in growing), *added]), where)


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a part of a tokenizer, sequences within sequences laid out."""
    if part is None:
        return
    if part["type"] != "Sequence":
        yield part
        return
    for name in PARTS:
        for step in part.get(name) or ():
            yield from _steps(step)


def _pattern(step: dict[str, Any]) -> str:
    (pattern,) = step["pattern"].values()  # {"String": ...} or {"Regex": ...}
    return str(pattern)


def _try(steps: list[dict[str, Any]], text: str, where: str) -> None:
    """Run normalizers one by one. Raises InputError as soon as the text is, or could become, too long."""
    longest = GROWN + GROWTH * len(text)
    for step in steps:
        if step["type"] == "Replace":
            pattern, most = _pattern(step), len(text) + 1
            if "String" in step["pattern"] and pattern:
                most = text.count(pattern)
            if most * len(step["content"]) > GROWTH * longest:
                raise _too_long(where)
        text = _alone(step).normalizer.normalize_str(text)
        if len(text) > longest:
            raise _too_long(where)


def _too_long(where: str) -> InputError:
    return InputError(f"{where}: lengthens texts without bound (its normalizers or decoders build on each other); give another")


def _alone(step: dict[str, Any]) -> Tokenizer:
    """A tokenizer that has one normalizer and next to nothing else."""
    return Tokenizer.from_str(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": step, "pre_tokenizer": None,
        "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
