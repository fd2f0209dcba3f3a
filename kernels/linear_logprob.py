"""`linear_logprob` and `summed_nll`: log softmax(hidden @ weight^T + bias) at given tokens, without ever holding [N, V].

Replaces `F.log_softmax(hidden @ weight.T + bias, -1).gather(-1, target[:, None])[:, 0]`, and its sum over a text. Operations,
bytes, what is held, and the gradient: see `linear_buckets`, of which these are the closing arithmetic.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.buckets import Buckets, ScoredRows
from tsdfm.kernels.dispatch import accumulator, backend
from tsdfm.kernels.linear_buckets import as_computed, check_ids, linear_buckets


def linear_logprob_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """Log-probability of each row's target by the definition, in the input's own precision: [N], nats; holds all of [N, V].

    Arguments as of `linear_logprob`, of one dtype, bias included; checks nothing.
    """
    return F.log_softmax(F.linear(hidden, weight, bias), -1).gather(-1, target[:, None])[:, 0]


def linear_logprob(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, ignore_index: int | None = None
) -> Tensor:
    """Log-probability of each row's target; differentiable (once) in hidden, weight and bias.

    Args:
        hidden: [N, D] float32, bfloat16 or float16 (float64 on CPUs).
        weight: [V, D], same dtype; under autocast both are taken in its dtype.
        bias: [V], or None; -inf takes a token out.
        target: [N] int64 in [0, V), or `ignore_index`.
        ignore_index: rows with this target are not computed and give 0, without a gradient.

    Returns:
        [N] float32 (float64 for float64); nats.

    Raises:
        ValueError: shapes or dtypes that don't fit together, (on CPUs) a target outside the vocabulary, (on GPUs) float64.
    """
    if target.shape != hidden.shape[:1]:
        raise ValueError(f"target {tuple(target.shape)} must be [{len(hidden)}], one id per row of hidden")
    if ignore_index is None:
        return linear_buckets(hidden, weight, bias, target[:, None]).logprob
    scored = target != ignore_index
    found = linear_buckets(hidden[scored], weight, bias, target[scored, None]).logprob
    return torch.zeros(len(target), dtype=found.dtype, device=found.device).masked_scatter(scored, found)


def linear_logprobs(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Tensor:
    """Log-probabilities of k tokens of each row, which may repeat: ids [N, k] int64 in [0, V) -> [N, k], nats; differentiable.

    hidden [N, D], weight [V, D], bias [V] or None, the dtypes and the errors: as of `linear_logprob`.
    """
    return normalised(linear_buckets(hidden, weight, bias, ids), ids)[0]


def normalised(buckets: Buckets, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen tokens [N, k], and of all others together [N]: nats, in the dtype of `buckets.chosen`.

    ids [N, k] int64: those that the buckets are of; they may repeat. The others' is -inf where none has mass.
    """
    repeated = (ids[:, :, None] == ids[:, None, :]).tril(-1).any(-1)
    chosen = buckets.chosen.double()
    total = torch.cat([chosen.masked_fill(repeated, -torch.inf), buckets.rest[:, None]], 1).logsumexp(-1)
    kind = buckets.chosen.dtype
    return (chosen - total[:, None]).to(kind), (buckets.rest - total).to(kind)


def summed_nll(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, *, scored: Tensor, count: int | None = None
) -> Tensor:
    """Negative log-likelihood of each of C candidates, summed over its scored positions; differentiable (once).

    Args:
        hidden: [C, T, D] float32, bfloat16 or float16 (float64 on CPUs).
        weight: [V, D], same dtype; under autocast both are taken in its dtype.
        bias: [V], or None; -inf takes a token out.
        target: [C, T] int64 in [0, V).
        scored: [C, T] bool or float, the weight of each position; those of weight 0 are not computed, and their target may be
            anything.
        count: how many weights are not 0; None: a GPU is waited for, to know it.

    Returns:
        [C] float32 (float64 for float64); nats. On a GPU without gradients, one launch from hidden to this.

    Raises:
        ValueError: shapes or dtypes that don't fit together, (on CPUs) a target outside the vocabulary, (on GPUs) float64.
    """
    if target.shape != hidden.shape[:2] or scored.shape != target.shape:
        raise ValueError(f"target {tuple(target.shape)} and scored {tuple(scored.shape)} must be {tuple(hidden.shape[:2])}")
    flat_scored = scored.flatten()
    picked = (flat_scored.nonzero() if count is None else torch.nonzero_static(flat_scored, size=count))[:, 0]
    ids, weights = target.flatten()[picked], flat_scored[picked].to(accumulator(hidden))
    flat = hidden.flatten(0, 1)
    if backend(hidden) == "triton" and not torch.is_grad_enabled():
        from tsdfm.kernels import linear_buckets_triton as fused

        flat, weight, bias = as_computed(flat, weight, bias)
        check_ids(ids, len(weight))
        return fused.summed_nll(flat, weight, bias, ScoredRows(picked, ids, weights, (scored != 0).sum(-1)))
    nll = -linear_logprob(flat[picked], weight, bias, ids) * weights
    return torch.zeros(target.numel(), dtype=nll.dtype, device=nll.device).scatter(0, picked, nll).view(target.shape).sum(-1)
