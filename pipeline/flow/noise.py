"""All random numbers of a rollout, each a pure function of (seed, trajectory_id, step, candidate, position, purpose).

Key: (seed, trajectory_id). Counter: (position, candidate, step, purpose + 16 * stage). A solver that takes several
stages within a step gives each its own number, so no number is used twice.
"""

from enum import IntEnum

import torch
from torch import Tensor

from tsdfm.kernels.philox import uniform

_STAGE_STRIDE = 16


class Purpose(IntEnum):
    """What a number is for; keeps the streams apart."""

    SOURCE = 0
    RING = 1
    TOKEN = 2
    CHOICE = 3


class Noise:
    """The noise of a batch of trajectories; `ids` [B] int64."""

    def __init__(self, seed: int, ids: Tensor) -> None:
        self.ids, self.device = ids, ids.device
        self.seed = torch.tensor(seed, device=ids.device)

    def _uniform(self, rows: Tensor, position: Tensor, candidate: Tensor, step: Tensor, purpose: int) -> Tensor:
        tag = torch.tensor(purpose, device=self.device)
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

    def tokens(self, rows: Tensor, steps: Tensor, positions: Tensor, candidates: int, stage: int = 0) -> Tensor:
        """Uniforms for the candidates of R ringing positions (rows, steps, positions [R]): [R, K] float64."""
        candidate = torch.arange(candidates, device=self.device)
        purpose = Purpose.TOKEN + _STAGE_STRIDE * stage
        return self._uniform(rows[:, None], positions[:, None], candidate, steps[:, None], purpose)

    def choice(self, rows: Tensor, steps: Tensor, stage: int = 0) -> Tensor:
        """One uniform per batch row [A] at its step [A], for the choice among candidates: [A] float64."""
        return self._uniform(rows, self._zero(), self._zero(), steps, Purpose.CHOICE + _STAGE_STRIDE * stage)
