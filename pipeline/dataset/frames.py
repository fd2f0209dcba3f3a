"""A trajectory as pictures: the text at each step with events, what changed, candidates and energies."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np

from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.trajectory import Grid

BROKEN = "\ufffd"  # what a token decodes to, alone, if it holds only a part of a character


class Pieces:
    """Decodes states token by token, so that the pieces of a state joined give its text, whatever the decoder does.

    What a token adds to a text can depend on those before it: a WordPiece decoder puts a space before a word that begins and
    none before "##ing", Metaspace drops the space of the first word, a character may lie in several tokens. So three ways are
    tried, the quick ones first, and the first whose pieces join to the text is taken: tokens on their own; what each adds to
    the token before it; and what each adds to all tokens before it, which joins by construction.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._alone: dict[int, str] = {}
        self._after: dict[tuple[int, int], str] = {}

    def piece(self, token: int) -> str:
        """One token on its own: [EOS] a line break, [MASK] a low line, a part of a character U+FFFD."""
        if token not in self._alone:
            self._alone[token] = self.vocabulary.decode([token])
        return self._alone[token]

    def of(self, tokens: Sequence[int]) -> list[str]:
        """Tokens [L] to L pieces; of neighbours that share a character, the first or the last holds the text of all."""
        breaks = (self.vocabulary.eos_id, self.vocabulary.mask_id)  # which `decode` shows itself: texts begin anew after them
        pieces: list[str] = []
        for shown, group in groupby(tokens, key=lambda token: token in breaks):
            run = list(group)
            pieces += [self.piece(token) for token in run] if shown else self._of_run(run)
        return pieces

    def _of_run(self, run: list[int]) -> list[str]:
        text = self.vocabulary.decode(run)
        for way in (self._one_by_one, self._two_by_two):
            pieces = way(run)
            if "".join(pieces) == text:
                return pieces
        return self._by_prefixes(run, text)

    def _one_by_one(self, run: list[int]) -> list[str]:
        """Each token on its own; of neighbours that are parts of characters, the first holds all."""
        pieces: list[str] = []
        for broken, group in groupby(run, key=lambda token: BROKEN in self.piece(token)):
            part = list(group)
            if broken:
                pieces += [self.vocabulary.decode(part), *[""] * (len(part) - 1)]
            else:
                pieces += [self.piece(token) for token in part]
        return pieces

    def _two_by_two(self, run: list[int]) -> list[str]:
        """What each token adds to the one before it."""
        for pair in pairwise(run):
            if pair not in self._after:
                before, both = self.piece(pair[0]), self.vocabulary.decode(pair)
                self._after[pair] = both.removeprefix(before)
        return [self.piece(run[0]), *(self._after[pair] for pair in pairwise(run))]

    def _by_prefixes(self, run: list[int], text: str) -> list[str]:
        """What each token adds to all before it: as far as the text is decoded, and stays so, once the token is there."""
        ends = [0]
        for count in range(1, len(run)):
            ends.append(max(ends[-1], _alike(self.vocabulary.decode(run[:count]), text)))
        return [text[start:end] for start, end in zip(ends, [*ends[1:], len(text)], strict=True)]


def _alike(one: str, other: str) -> int:
    """With how many equal characters two texts begin."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


@dataclass(frozen=True)
class TokenChoice:
    """What one position chose by itself: energies [K] of its candidates, nats, None where all agreed; the kept one."""

    energies: list[float] | None
    choice: int


@dataclass(frozen=True)
class Frame:
    """The state after one step of R events, of a trajectory of L tokens and K candidates.

    `energies` is None where no whole candidate was scored: at a step that was not shaped, or whose positions chose by
    themselves (`choice` is None, too), and at one whose candidates agreed (`choice` is 0).
    """

    step: int  # 0-based
    t: float  # (step + 1) / N, the time of the state
    pieces: list[str]  # [L]; a mask is "_"
    masked: list[bool]  # [L]
    changed: list[int]  # [R] positions of this step's events; a redraw may have given the same token again
    candidates: list[list[str]]  # [R][K], the tokens drawn for each of them
    energies: list[float] | None  # [K], nats per token
    choice: int | None
    choices: list[TokenChoice] | None = None  # [R], where positions chose by themselves


def frames(log: JumpLog, vocabulary: Vocabulary, grid: Grid) -> list[Frame]:
    """The text forming: one frame per step that has events, in order; the last one shows `log.tokens`.

    Args:
        log: a sound trajectory of the dataset.
        vocabulary: the dataset's.
        grid: the dataset's; gives N, the mask id, and which step each entry of `step_choice` belongs to.
    """
    pieces = Pieces(vocabulary)
    # An arm without choices has S = 0 whatever the grid says.
    slots = {step: slot for slot, step in enumerate(grid.shaped_steps[: len(log.step_choice)])}
    steps, starts = np.unique(log.event_step, return_index=True)
    state = log.source(grid.mask_id).copy()
    pictures = []
    for step, start, stop in zip(steps.tolist(), starts, [*starts[1:], len(log.event_step)], strict=True):
        positions = log.event_position[start:stop]
        state[positions] = log.event_token[start:stop]
        slot = slots.get(step)
        energies = None if slot is None else log.step_energy[slot]
        pictures.append(Frame(
            step=step, t=(step + 1) / grid.steps, pieces=pieces.of(state.tolist()),
            masked=[token == grid.mask_id for token in state.tolist()], changed=positions.tolist(),
            candidates=[[pieces.piece(token) for token in row]
                        for row in log.event_candidates[start:stop].tolist()],
            energies=None if energies is None or np.isnan(energies).any() else energies.tolist(),
            choice=None if slot is None else int(log.step_choice[slot]),
            choices=_token_choices(log, slice(start, stop)) if step in grid.token_steps and log.arm == "shaped" else None,
        ))
    return pictures


def _token_choices(log: JumpLog, events: slice) -> list[TokenChoice] | None:
    """What the positions of some events chose by themselves; None where there was one candidate only."""
    if log.event_choice is None or log.event_energy is None or log.event_candidates.shape[1] == 1:
        return None
    energies = [None if np.isnan(each).any() else each.tolist() for each in log.event_energy[events]]
    return [TokenChoice(each, choice)
            for each, choice in zip(energies, log.event_choice[events].tolist(), strict=True)]
