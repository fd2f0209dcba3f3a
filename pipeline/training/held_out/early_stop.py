"""Stop a training whose held-out loss falls no more, and keep the weights of its lowest."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STATE = "early_stop"  # the name of its numbers in a checkpoint


class EarlyStop:
    """The lowest value heard, and the weights that gave it; `spent` once so many values in a row were no lower.

    Args:
        patience: how many.
        weights: of which copies are kept; they are as those that are heard.
    """

    def __init__(self, patience: int, weights: Sequence[Tensor]) -> None:
        self.patience, self.best = patience, [weight.detach().clone() for weight in weights]
        self.numbers = torch.tensor([math.inf, 0.0, 0.0], dtype=torch.float64)  # the lowest, how many since, and its update

    @property
    def spent(self) -> bool:
        """Whether to stop."""
        return float(self.numbers[1]) >= self.patience

    @property
    def step(self) -> int:
        """The update of the weights that are kept."""
        return int(self.numbers[2])

    @torch.no_grad()
    def hear(self, value: float, weights: Sequence[Tensor], step: int) -> None:
        """The value of some weights, after update `step`."""
        if value < float(self.numbers[0]):
            torch._foreach_copy_(self.best, list(weights))
            self.numbers = torch.tensor([value, 0.0, step], dtype=torch.float64)
        else:
            self.numbers[1] += 1

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a checkpoint."""
        return {STATE: self.numbers, **{f"{index}.best": weight for index, weight in enumerate(self.best)}}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """What `tensors` gave."""
        self.numbers = tensors[STATE].clone()
        for index, weight in enumerate(self.best):
            weight.copy_(tensors[f"{index}.best"])
