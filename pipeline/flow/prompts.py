"""Prompts: texts of which the model writes only a part, and the tokens that stand in them from the beginning.

Each piece of a prompt becomes tokens by itself, in the form of all training text (NFC, without control characters). So where a
piece ends, a token ends, and the model can't go on in the middle of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.dataset.files.given import digest_of
from tsdfm.pipeline.text.cleaning import plain
from tsdfm.pipeline.text.sources.formats import short_texts
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.given import PromptFacts
from tsdfm.schemas.prompts import BLANK
from tsdfm.schemas.sample import SampleConfig

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
            pieces = [vocabulary.encode_whole(plain(piece)[0]) if piece else [] for piece in self.pieces]
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
        return [_with_gaps(config.infill, "infill")]
    if config.prompt is not None:
        return [_beginning(config.prompt, "prompt")]
    return [] if config.prompts is None else prompts_in(config.prompts, config.prompt_field, gaps=config.prompt_gaps)


def prompts_in(file: str, field: str, *, gaps: bool) -> list[Prompt]:
    """The prompts of a file, at least one. `gaps`: whether ___ is one.

    Raises InputError: it can't be read, lacks the field, or a prompt is empty.
    """
    read, found = _with_gaps if gaps else _beginning, list[Prompt]()
    for number, text in enumerate(short_texts(Path(file), field), 1):
        if not text:
            raise InputError(f"{file}: prompt {number} is {'null' if text is None else 'empty'}; write one, or remove it")
        found.append(read(text, f"{file}: prompt {number}"))
    if not found:
        raise InputError(f"{file}: holds no prompt; write one a line")
    return found


def _beginning(text: str, where: str) -> Prompt:
    return Prompt(text, where, [text], ends_free=True)


def _with_gaps(text: str, where: str) -> Prompt:
    """What stands between the gaps of a text; of one without a gap, its beginning."""
    pieces = BLANK.split(text)
    ends_free = not pieces[-1] or len(pieces) == 1
    return Prompt(text, where, pieces[:-1] if ends_free and len(pieces) > 1 else pieces, ends_free)


def written(tokens: list[int], fixed: list[int], vocabulary: Vocabulary) -> list[str]:
    """What stands in each run of free positions, decoded; a text that ended has fewer tokens than its prompt has positions."""
    runs = groupby(enumerate(fixed), lambda pair: pair[1] == FREE)
    return [vocabulary.decode([tokens[place] for place, _ in run if place < len(tokens)]) for free, run in runs if free]


@dataclass(frozen=True, eq=False)  # arrays have no truth value: equal means the same object
class Given:
    """The fixed tokens of a dataset's prompts, of all or of some in a row. Trajectory i is of prompt i // per_prompt."""

    length: int  # L of the texts
    per_prompt: int
    first: int  # the number of the first prompt that is here
    offsets: npt.NDArray[np.int64]  # [P + 1], where each prompt's begin
    positions: npt.NDArray[np.int32]  # [T], rising in each prompt
    tokens: npt.NDArray[np.int32]  # [T]

    @classmethod
    def of(cls, prompts: Sequence[Prompt], vocabulary: Vocabulary, length: int, per_prompt: int) -> "Given":
        """The tokens of prompts in texts of `length` tokens. Raises InputError, naming the prompt that can't be given."""
        patterns = (np.array(prompt.fixed(vocabulary, length), np.int32) for prompt in prompts)
        kept = [(np.flatnonzero(pattern != FREE).astype(np.int32), pattern[pattern != FREE]) for pattern in patterns]
        sizes = np.cumsum([0, *(len(positions) for positions, _ in kept)])
        return cls(length, per_prompt, 0, sizes, *(np.concatenate(part) for part in zip(*kept, strict=True)))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def trajectories(self) -> int:
        """How many there are of all prompts."""
        return len(self) * self.per_prompt

    @property
    def free(self) -> float:
        """How many positions of a text are not fixed, on average over prompts."""
        return self.length - len(self.tokens) / len(self)

    def fixed(self, ids: Sequence[int]) -> Tensor:
        """The tokens [n, L] of the trajectories `ids`, FREE where none is fixed; int64.

        Ids after the last prompt's begin with the first prompt again: a plan measures trajectories that no dataset has.
        """
        found = torch.full((len(ids), self.length), FREE)
        for row, number in enumerate(ids):
            prompt = (number // self.per_prompt - self.first) % len(self)
            part = slice(self.offsets[prompt], self.offsets[prompt + 1])
            found[row, torch.from_numpy(self.positions[part]).long()] = torch.from_numpy(self.tokens[part]).long()
        return found

    def of_trajectories(self, start: int, stop: int) -> "Given":
        """The prompts of trajectories start..stop-1 alone: what a worker needs of them."""
        first, last = start // self.per_prompt - self.first, -(-stop // self.per_prompt) - self.first
        offsets = self.offsets[first : last + 1]
        part = slice(offsets[0], offsets[-1])
        return replace(self, first=self.first + first, offsets=offsets - offsets[0], positions=self.positions[part],
                       tokens=self.tokens[part])

    def facts(self, trajectories: int) -> PromptFacts:
        """What a manifest says of the prompts that so many trajectories are of."""
        used = self.of_trajectories(0, trajectories)
        return PromptFacts(per_prompt=self.per_prompt, sha256=digest_of(used.offsets, used.positions, used.tokens))
