"""`linear_logprob` and `energy`: log softmax(hidden @ weight^T + bias) at given tokens, without ever holding [N, V].

Replaces `F.log_softmax(hidden @ weight.T + bias, -1).gather(-1, target[:, None])[:, 0]`, and its sum over a text. Operations,
bytes, what is held, and the gradient: see `linear_buckets`, of which these are the closing arithmetic.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.dispatch import accumulator, backend
from tsdfm.kernels.linear_buckets import Buckets, as_computed, check_ids, linear_buckets


def linear_logprob_reference(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
    """The definition, in the input's own precision; holds all of [N, V]."""
    return F.log_softmax(F.linear(hidden, weight, bias), -1).gather(-1, target[:, None])[:, 0]


def linear_logprob(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, ignore_index: int | None = None
) -> Tensor:
    """Log-probability of each row's target; differentiable (once) in hidden, weight and bias.

    Args:
        hidden: [N, D] float32, bfloat16 or float16 (float64 on CPUs).
        weight: [V, D], same dtype; under autocast both are taken in its dtype.
        target: [N] int64 in [0, V), or `ignore_index`.
        bias: [V], or None.
        ignore_index: rows with this target are not computed and give 0, without a gradient.

    Returns:
        [N] float32 (float64 for float64); nats.

    Raises:
        ValueError: shapes or dtypes that don't fit together, or (on CPUs) a target outside the vocabulary.
    """
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"target {tuple(target.shape)} must be [{len(hidden)}], one id per row of hidden")
    if ignore_index is None:
        return linear_buckets(hidden, weight, target[:, None], bias).logprob
    scored = target != ignore_index
    found = linear_buckets(hidden[scored], weight, target[scored, None], bias).logprob
    return torch.zeros(len(target), dtype=found.dtype, device=found.device).masked_scatter(scored, found)


def linear_logprobs(hidden: Tensor, weight: Tensor, ids: Tensor, bias: Tensor | None = None) -> Tensor:
    """Log-probabilities of k tokens of each row, which may repeat: ids [N, k] -> [N, k]; all else as `linear_logprob`."""
    return normalised(linear_buckets(hidden, weight, ids, bias), ids)[0]


def normalised(buckets: Buckets, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen tokens [N, k], and of all others together [N], for the ids [N, k] of the buckets."""
    repeated = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(-1)
    chosen = buckets.chosen.double()
    total = torch.cat([chosen.masked_fill(repeated, -torch.inf), buckets.rest[:, None]], 1).logsumexp(-1)
    kind = buckets.chosen.dtype
    return (chosen - total[:, None]).to(kind), (buckets.rest - total).to(kind)


def energy(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, scored: Tensor) -> Tensor:
    """Negative log-likelihood of each candidate, summed over its scored positions.

    Args:
        hidden: [C, T, D], dtypes as of `linear_logprob`.
        weight: [V, D].
        target: [C, T] int64.
        bias: [V], or None.
        scored: [C, T], the weight of each position; positions of weight 0 are not computed, and their target may be anything.

    Returns:
        [C] float32 (float64 for float64); nats. On a GPU without gradients, one launch from hidden to this.

    Raises:
        ValueError: as `linear_logprob`.
    """
    if target.shape != hidden.shape[:2] or scored.shape != target.shape:
        raise ValueError(f"target {tuple(target.shape)} and scored {tuple(scored.shape)} must be {tuple(hidden.shape[:2])}")
    picked = scored.flatten().nonzero()[:, 0]
    ids, weights = target.flatten()[picked], scored.flatten()[picked].to(accumulator(hidden))
    flat = hidden.flatten(0, 1)
    if backend(hidden) == "triton" and not torch.is_grad_enabled():
        from tsdfm.kernels.linear_buckets_triton import energies

        flat, weight, bias = as_computed(flat, weight, bias)
        check_ids(ids, len(weight))
        return energies(flat, weight, ids, bias, picked, weights, (scored != 0).sum(-1))
    nll = -linear_logprob(flat[picked], weight, ids, bias) * weights
    return torch.zeros(target.numel(), dtype=nll.dtype, device=nll.device).scatter(0, picked, nll).view(target.shape).sum(-1)
