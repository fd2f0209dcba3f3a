"""All random numbers of rollouts, each a pure function of (use, seed, trajectory_id, step, candidate, position, purpose).

Key: (seed, trajectory_id). Counter: (position, candidate + 256 block, step, purpose + 16 * stage + 65,536 * use). A solver that
takes several stages within a step gives each its own number, trajectories that are rolled out for another use have counters of
their own, and so have the blocks of a text that is written in several (`texts/blocks.py`). So no number is used twice, and none
that measures a model is one that its training data was made with, whatever the seeds. Training draws its batches from other
generators altogether (`loader/streams.py`, `training/loop/trainer.py`).
"""

from enum import IntEnum

import torch
from torch import Tensor

from tsdfm.kernels.philox import uniform

_STAGE_STRIDE, _USE_STRIDE, _BLOCK_STRIDE = 16, 1 << 16, 1 << 8  # there are at most 127 candidates


class Purpose(IntEnum):
    """What a number is for; keeps the streams apart."""

    SOURCE = 0
    RING = 1
    TOKEN = 2
    CHOICE = 3
    SPACING = 4


class Use(IntEnum):
    """What trajectories are rolled out for; each use has noise that no other can draw."""

    MAKE = 0  # a dataset (`generate`)
    MEASURE = 1  # texts of a model, to be read or judged (`sample`, `evaluate`, and with it `ablate` and `demo`)
    CONTRAST = 2  # what `nce` and `contrast` compasses set real text against (`fit-compass`)


class Noise:
    """The noise of a batch of trajectories: `ids` [B] int64 in [0, 2^31), `seed` in [0, 2^32), `block` in [0, 2^24)."""

    def __init__(self, seed: int, ids: Tensor, use: Use = Use.MAKE, block: int = 0) -> None:
        self.ids, self.device, self.use, self.block = ids, ids.device, use, block
        self.seed = torch.tensor(seed, device=ids.device)

    def _uniform(self, rows: Tensor, position: Tensor, candidate: Tensor, step: Tensor, purpose: int) -> Tensor:
        tag = torch.full((), purpose + _USE_STRIDE * self.use, device=self.device)  # filled there; a tensor of data is copied
        if self.block:
            candidate = candidate + _BLOCK_STRIDE * self.block
        return uniform((self.seed, self.ids[rows]), (position, candidate, step, tag))

    def _zero(self) -> Tensor:
        return torch.zeros((), dtype=torch.long, device=self.device)

    def source(self, length: int) -> Tensor:
        """Uniforms for x_0, [B, L] float64."""
        rows = torch.arange(len(self.ids), device=self.device)[:, None]
        position = torch.arange(length, device=self.device)
        return self._uniform(rows, position, self._zero(), self._zero(), Purpose.SOURCE)

    def rings(self, rows: Tensor, steps: Tensor, length: int, stage: int = 0) -> Tensor:
        """Uniforms for the clocks of batch rows [A] at their steps [A]: [A, L] float64."""
        position = torch.arange(length, device=self.device)
        return self._uniform(rows[:, None], position, self._zero(), steps[:, None], Purpose.RING + _STAGE_STRIDE * stage)

    def spacing(self, count: int) -> Tensor:
        """The first `count` uniforms of each trajectory for clocks that are drawn together: [B, count] float64."""
        rows = torch.arange(len(self.ids), device=self.device)[:, None]
        return self._uniform(rows, torch.arange(count, device=self.device), self._zero(), self._zero(), Purpose.SPACING)

    def tokens(self, rows: Tensor, steps: Tensor, positions: Tensor, candidates: int, stage: int = 0) -> Tensor:
        """Uniforms for the candidates of R ringing positions (rows, steps, positions [R]): [R, K] float64."""
        candidate = torch.arange(candidates, device=self.device)
        purpose = Purpose.TOKEN + _STAGE_STRIDE * stage
        return self._uniform(rows[:, None], positions[:, None], candidate, steps[:, None], purpose)

    def choice(self, rows: Tensor, steps: Tensor, stage: int = 0) -> Tensor:
        """One uniform per batch row [A] at its step [A], for the choice among candidates: [A] float64."""
        return self._uniform(rows, self._zero(), self._zero(), steps, Purpose.CHOICE + _STAGE_STRIDE * stage)

    def token_choice(self, rows: Tensor, steps: Tensor, positions: Tensor, sweep: int, stage: int = 0) -> Tensor:
        """One uniform for the choice at each of R positions (rows, steps, positions [R]) in a sweep from 0: [R] float64."""
        candidate = torch.full((), sweep + 1, device=self.device)  # 0 is that of `choice`
        return self._uniform(rows, positions, candidate, steps, Purpose.CHOICE + _STAGE_STRIDE * stage)
