"""`linear_logprob`: log softmax(hidden @ weight^T + bias)[target] without ever holding [N, V].

Replaces `F.log_softmax(hidden @ weight.T + bias, -1).gather(-1, target[:, None])[:, 0]`.

Operations: 2 N D V for the product and about 4 N V for the log-sum-exp. Bytes: the weight once per block of rows, hidden once,
N floats out. Held at any moment: one block of at most `BLOCK_ELEMENTS` logits, whatever N is.
"""

import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear import linear

BLOCK_ELEMENTS = 1 << 21  # 8 MiB of float32 logits: stays near the last-level cache, and amortises the launch


def linear_logprob_reference(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, in the input's own precision; holds all of [N, V]."""
    return F.log_softmax(F.linear(hidden, weight, bias), -1).gather(-1, target[:, None])[:, 0]


def rows_per_block(elements_per_row: int) -> int:
    """Rows that fill one block."""
    return max(1, BLOCK_ELEMENTS // elements_per_row)


def linear_logprob(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log-probability of each row's target.

    Args:
        hidden: [N, D], float32 (or float64).
        weight: [V, D], same dtype.
        target: [N] int64 in [0, V).
        bias: [V], or None.

    Returns:
        [N], the dtype of `hidden`; nats.

    Raises:
        ValueError: shapes that don't fit together.
    """
    _check(hidden, weight, target, bias)
    out = hidden.new_empty(len(hidden))
    step = rows_per_block(len(weight))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits = linear(hidden[rows], weight, bias)
        # Shifted by the maximum before anything is subtracted: logits of 1e4 keep their last bits.
        logits -= logits.amax(-1, keepdim=True)
        picked = logits.gather(-1, target[rows, None])[:, 0]
        out[rows] = picked - logits.exp_().sum(-1).log_()
    return out


def energy(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, scored: Tensor) -> Tensor:
    """Negative log-likelihood of each candidate, summed over its scored positions.

    Args:
        hidden: [C, T, D].
        weight: [V, D].
        target: [C, T] int64.
        bias: [V], or None.
        scored: [C, T], the weight of each position; positions of weight 0 are not computed.

    Returns:
        [C], the dtype of `hidden`; nats.
    """
    picked = scored != 0
    nll = hidden.new_zeros(target.shape)
    nll[picked] = -linear_logprob(hidden[picked], weight, target[picked], bias) * scored[picked].to(hidden.dtype)
    return nll.sum(-1)


def _check(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [N, D] and [V, D]")
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"target {tuple(target.shape)} must be [{len(hidden)}], one id per row of hidden")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must be [{len(weight)}], one per row of weight")
