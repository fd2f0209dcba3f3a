"""A trajectory as pictures: the text at each step with events, what changed, candidates and energies."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.trajectory import Grid

BROKEN = "\ufffd"  # what a token decodes to, alone, if it holds only a part of a character


class Pieces:
    """Decodes states token by token, so that the pieces of a state joined give its text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._alone: dict[int, str] = {}

    def piece(self, token: int) -> str:
        """One token on its own: [EOS] a line break, [MASK] a low line, a part of a character U+FFFD."""
        if token not in self._alone:
            self._alone[token] = self.vocabulary.decode([token])
        return self._alone[token]

    def of(self, tokens: Sequence[int]) -> list[str]:
        """Tokens [L] to L pieces; of neighbours that share a character, the first holds the text of all."""
        pieces: list[str] = []
        for broken, group in groupby(tokens, key=lambda token: BROKEN in self.piece(token)):
            run = list(group)
            if broken:
                pieces += [self.vocabulary.decode(run), *[""] * (len(run) - 1)]
            else:
                pieces += [self.piece(token) for token in run]
        return pieces


@dataclass(frozen=True)
class Frame:
    """The state after one step of R events, of a trajectory of L tokens and K candidates.

    `energies` is None where none was scored: at a step that was not shaped (`choice` is None, too), and at a
    shaped one whose candidates agreed (`choice` is 0).
    """

    step: int  # 0-based
    t: float  # (step + 1) / N, the time of the state
    pieces: list[str]  # [L]; a mask is "_"
    masked: list[bool]  # [L]
    changed: list[int]  # [R] positions of this step's events; a redraw may have given the same token again
    candidates: list[list[str]]  # [R][K], the tokens drawn for each of them
    energies: list[float] | None  # [K], nats per token
    choice: int | None


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
        ))
    return pictures
