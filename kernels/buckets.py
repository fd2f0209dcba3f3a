"""What `linear_buckets` and its Triton kernels hand to each other: `Buckets`, and the rows of a gradient or a sum."""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Buckets(NamedTuple):
    """Logits of the k chosen tokens of each of N rows, and the log-sum-exp of all other tokens of the row; in nats."""

    chosen: Tensor  # [N, k] float32 (float64 for float64 inputs), logits of the chosen tokens
    rest: Tensor  # [N] float64, for the sake of logits of 1e4: log-sum-exp of all others; -inf if none has mass

    @property
    def logprob(self) -> Tensor:
        """Log-probability of the first chosen token of each row, for k = 1: [N] in the dtype of `chosen`, nats, at most 0."""
        gap = self.rest - self.chosen[:, 0].double()
        return -F.softplus(gap, threshold=80).to(self.chosen.dtype)  # beyond it softplus(x) is x in float64, too


class RowGradients(NamedTuple):
    """What a block of G (see `linear_buckets`) takes of its r rows beside hidden states; floats in the dtype of the logits."""

    places: Tensor  # [r, k] int64: where in the block the chosen tokens stand; outside [0, w) for those of other blocks
    top: Tensor  # [r], the rest in the dtype of the logits; 0 where nothing else has mass
    grad_chosen: Tensor  # [r, k]
    grad_rest: Tensor  # [r], multiplied by exp(top - rest)


class ScoredRows(NamedTuple):
    """The N positions that `summed_nll` sums over, those of a candidate one after another."""

    picked: Tensor  # [N] int64, rows of the hidden states
    ids: Tensor  # [N] int64 in [0, V), the token of each
    weights: Tensor  # [N], at least float32
    counts: Tensor  # [C] int64, how many of them each candidate has
