"""Prompts: texts of which the model writes only a part, and the tokens that stand in them from the beginning.

Each piece of a prompt becomes tokens by itself, in the Unicode form of all training text (NFC). So where a piece ends, a token
ends, and the model can't go on in the middle of one.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from unicodedata import normalize

from tsdfm.pipeline.text.sources.formats import short_texts
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.sample import BLANK, SampleConfig

FREE = -1


@dataclass(frozen=True)
class Prompt:
    """A prompt and where it stands: its pieces, between and after which the model writes. `where`: how messages name it."""

    text: str
    where: str
    pieces: list[str]
    ends_free: bool

    def fixed(self, vocabulary: Vocabulary, length: int) -> list[int]:
        """The tokens of its fixed positions in a text of `length`, and FREE elsewhere; gaps share those evenly.

        Raises InputError: no tokens, some that the model doesn't have, or too many.
        """
        try:
            pieces = [vocabulary.encode_whole(normalize("NFC", piece)) if piece else [] for piece in self.pieces]
        except InputError as error:
            raise InputError(f"{self.where}: {error}") from None
        given, gaps = sum(map(len, pieces)), len(pieces) - (not self.ends_free)
        if not given:
            raise InputError(f"{self.where}: is no token of the model; write words, or leave it out")
        if given + gaps > length:
            left = "one to write in each gap" if gaps > 1 else "one to write"
            raise InputError(f"{self.where}: has {given:,} tokens and a text of the model {length:,}, which doesn't leave "
                             f"{left}; shorten it, or raise --length if the model's texts can be longer")
        found: list[int] = []
        for number, piece in enumerate(pieces):
            share = (length - given) * (number + 1) // gaps - (length - given) * number // gaps if number < gaps else 0
            found += [*piece, *[FREE] * share]
        return found


def prompts_of(config: SampleConfig) -> list[Prompt]:
    """The prompts that a config asks for, none or some. Raises InputError: a file that can't be read, or an empty prompt."""
    if config.infill is not None:
        pieces = BLANK.split(config.infill)
        ends_free = not pieces[-1]
        return [Prompt(config.infill, "infill", pieces[:-1] if ends_free else pieces, ends_free)]
    if config.prompt is not None:
        return [_beginning(config.prompt, "prompt")]
    return list(_of_file(Path(config.prompts), config.prompt_field)) if config.prompts is not None else []


def _beginning(text: str, where: str) -> Prompt:
    return Prompt(text, where, [text], ends_free=True)


def _of_file(path: Path, field: str) -> Iterator[Prompt]:
    number = 0
    for number, text in enumerate(short_texts(path, field), 1):
        if not text:
            raise InputError(f"{path}: prompt {number} is {'null' if text is None else 'empty'}; write one, or remove it")
        yield _beginning(text, f"{path}: prompt {number}")
    if not number:
        raise InputError(f"{path}: holds no prompt; write one a line")


def written(tokens: list[int], fixed: list[int], vocabulary: Vocabulary) -> list[str]:
    """What stands in each run of free positions, decoded; a text that ended has fewer tokens than its prompt has positions."""
    runs = groupby(enumerate(fixed), lambda pair: pair[1] == FREE)
    return [vocabulary.decode([tokens[place] for place, _ in run if place < len(tokens)]) for free, run in runs if free]
