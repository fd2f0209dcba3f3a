"""`linear_buckets`: the logits of k chosen tokens and the log-sum-exp of all others, without ever holding [N, V].

    l[n, v]      = hidden[n] . weight[v] + bias[v]
    chosen[n, j] = l[n, ids[n, j]]                               one bucket for each chosen token
    rest[n]      = log sum of exp(l[n, v]) over v not in ids[n]    one bucket for all others

Log-probabilities, energies and the losses of distillation are a few operations on these [N, k + 1] numbers, so one kernel and
one gradient serve all of them. Keeping the chosen tokens out of the rest keeps the bits of -softplus(rest - chosen) for a token
whose probability is nearly one, and of the tail of a top-k divergence where it is nearly zero.

The gradient recomputes the logits a block at a time. With grad_chosen and grad_rest coming in,

    G[n, v] = grad_rest[n] exp(l[n, v] - rest[n])                for v not in ids[n]
            = sum of grad_chosen[n, j] over ids[n, j] = v        elsewhere
    d hidden = G weight,   d weight = G^T hidden,   d bias = sum over n of G

Operations: 2 N D V forward, 6 N D V backward. Bytes, for s bytes an element: s (V D + N D) forward; thrice that and the blocks
of G backward. Held at any moment: one block of `BLOCK_ELEMENTS` logits (CPU) or of G (`linear_buckets_triton.HELD_ELEMENTS`).
On a CPU a block is up to `BLOCK_ROWS` rows by as many tokens as fit: the weight is then read once per `BLOCK_ROWS` rows, and
logits stay in cache between the product and the sum (tests/benchmarks/logprob.py). With T threads and 128 T rows or more, each
thread takes rows of its own through the whole vocabulary, and they wait for each other once (see `alone`); blocks are then
1024 / T rows high, but 128 at least, so that beyond 8 threads T / 8 blocks are held. On a GPU: see `linear_buckets_triton`.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from tsdfm.kernels.alone import each_alone
from tsdfm.kernels.buckets import Buckets, RowGradients
from tsdfm.kernels.dispatch import accumulator, backend, check_head
from tsdfm.kernels.linear import linear

BLOCK_ELEMENTS = 1 << 19  # 2 MiB of float32
BLOCK_ROWS = 1024
SHARE_ROWS = 128  # at least, of a thread that takes rows of its own: each packs the weights for itself
BLOCK_TOKENS = 2048  # at most: the product packs the block's weights anew, 6 MiB at D = 768


def linear_buckets_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Buckets:
    """Buckets by the definition, in the input's own precision; holds all of [N, V].

    hidden [N, D], weight [V, D], bias [V] or None, of one dtype; ids [N, k] int64 in [0, V). Gives chosen [N, k] in that dtype
    and rest [N] float64, nats. Checks nothing.
    """
    logits = F.linear(hidden, weight, bias)
    return Buckets(logits.gather(-1, ids), logits.double().scatter(-1, ids, -torch.inf).logsumexp(-1))


def linear_buckets(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Buckets:
    """Logits of k chosen tokens of each row, and the log-sum-exp of all others; differentiable (once) in hidden, weight, bias.

    Args:
        hidden: [N, D] float32, bfloat16 or float16 (float64 on CPUs), in any strides.
        weight: [V, D], same dtype; under autocast both are taken in its dtype.
        bias: [V], or None; -inf takes a token out.
        ids: [N, k] int64 in [0, V); an id may occur twice in a row.

    Returns:
        Buckets with chosen [N, k] float32 (float64 for float64) and rest [N] float64, in nats; sums are of float32 for narrower
        inputs. On a GPU an id outside the vocabulary gives NaN.

    Raises:
        ValueError: shapes or dtypes that don't fit together, (on CPUs) an id outside the vocabulary, (on GPUs) float64.
    """
    if ids.ndim != 2 or len(ids) != len(hidden):
        raise ValueError(f"ids {tuple(ids.shape)} must be [{len(hidden)}, k], a row for each of hidden")
    hidden, weight, bias = as_computed(hidden, weight, bias)
    check_ids(ids, len(weight))
    if backend(hidden) == "reference":
        kind = accumulator(hidden)
        return linear_buckets_reference(hidden.to(kind), weight.to(kind), bias, ids)
    return Buckets(*_Function.apply(hidden, weight, bias, ids))  # type: ignore[no-untyped-call]


def as_computed(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The three inputs in the dtypes they are computed in: autocast's where it is on, and bias in that of the logits.

    hidden [N, D], weight [V, D], bias [V] or None. Raises ValueError as `check_head`.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        narrow = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(narrow), weight.to(narrow)
    check_head(hidden, weight, bias)
    return hidden, weight, None if bias is None else bias.to(accumulator(hidden))


def check_ids(ids: Tensor, vocab: int) -> None:
    """A check of ids, int64 in any shape: raises ValueError for one outside [0, vocab).

    Those on a GPU are not looked at, since that would wait for it; there such an id has the logit NaN.
    """
    if not ids.is_cuda and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < vocab:
        raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())} must lie in [0, {vocab})")


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> tuple[Tensor, Tensor]:
        if backend(hidden) == "triton":
            from tsdfm.kernels.linear_buckets_triton import buckets_of
        else:
            buckets_of = _buckets_of
        out = buckets_of(hidden, weight, bias, ids)
        ctx.save_for_backward(hidden, weight, bias, ids, out.rest)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_chosen: Tensor, grad_rest: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, rest = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if backend(hidden) == "triton":
            from tsdfm.kernels.linear_buckets_triton import gradient_block, product, rows_and_tokens
        else:
            gradient_block, product, rows_and_tokens = _gradient_block, _product, _rows_and_tokens
        kind = accumulator(hidden)
        step, width = rows_and_tokens(len(hidden))
        grad_hidden = torch.zeros(hidden.shape, dtype=kind, device=hidden.device) if wanted[0] else None
        grad_weight = torch.empty_like(weight) if wanted[1] else None
        grad_bias = torch.zeros(len(weight), dtype=kind, device=hidden.device) if wanted[2] else None
        # exp(l - rest) is exp(l - top) by a factor near one, so that float32 does for l - top at logits of 1e4, too.
        top = rest.masked_fill(rest == -torch.inf, 0).to(kind)
        grad_rest = (grad_rest * (top.double() - rest).clamp_max(1).exp()).to(kind)
        for tokens in _slices(len(weight), width):
            part = weight[tokens]
            grad_part = torch.zeros(part.shape, dtype=kind, device=hidden.device) if wanted[1] else None
            for rows in _slices(len(hidden), step):
                # block: [r, width], G of the definition
                block = gradient_block(
                    hidden[rows], part, None if bias is None else bias[tokens],
                    RowGradients(ids[rows] - tokens.start, top[rows], grad_chosen[rows], grad_rest[rows]))
                if grad_hidden is not None:
                    grad_hidden[rows] += product(block, part)
                if grad_part is not None:
                    grad_part += product(block.T, hidden[rows])
                if grad_bias is not None:
                    grad_bias[tokens] += block.sum(0, dtype=kind)
            if grad_weight is not None and grad_part is not None:
                grad_weight[tokens] = grad_part
        return None if grad_hidden is None else grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None


def _buckets_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Buckets:
    """The buckets of all rows, on a CPU; with several threads, each takes rows of its own."""
    out = Buckets(hidden.new_empty(ids.shape, dtype=accumulator(hidden)), hidden.new_empty(len(hidden), dtype=torch.float64))
    step, width = _rows_and_tokens(len(hidden))
    shares = list(_slices(len(hidden), _rows_of_a_share(len(hidden), torch.get_num_threads()) or step))
    found = each_alone(lambda rows: _buckets_of_rows(hidden[rows], weight, bias, ids[rows], width), shares)
    for rows, buckets in zip(shares, found, strict=True):
        out.chosen[rows], out.rest[rows] = buckets
    return out


def _rows_of_a_share(rows: int, threads: int) -> int | None:
    """How many rows a thread takes at a time, so that the blocks of all of them make one of `BLOCK_ELEMENTS`, or nearly.

    None where rows are so few that each product would better be shared among the threads.
    """
    if threads == 1 or rows < threads * SHARE_ROWS:
        return None
    return max(SHARE_ROWS, min(BLOCK_ROWS // threads, -(-rows // threads)))


def _buckets_of_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, width: int) -> Buckets:
    """The buckets of a block of rows: an online log-sum-exp over blocks of `width` tokens."""
    kind = accumulator(hidden)
    chosen = hidden.new_empty(ids.shape, dtype=kind)
    # peak, mass: [r, 1]
    peak = hidden.new_full((len(hidden), 1), -torch.inf, dtype=kind)
    mass = torch.zeros_like(peak)
    for tokens in _slices(len(weight), width):
        logits = _logits(hidden, weight[tokens], None if bias is None else bias[tokens])
        row, which, place = _inside(ids - tokens.start, logits.shape[1])
        chosen[row, which] = logits[row, place]
        logits[row, place] = -torch.inf
        new = torch.maximum(peak, logits.amax(-1, keepdim=True))
        # Shifted by the maximum before anything is subtracted: logits of 1e4 keep their last bits.
        shift = new.masked_fill(new == -torch.inf, 0)
        mass = mass * (peak - shift).exp() + logits.sub_(shift).exp_().sum(-1, keepdim=True)
        peak = new
    return Buckets(chosen, (peak.double() + mass.double().log())[:, 0])


def _gradient_block(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: RowGradients) -> Tensor:
    """G [r, w] of r rows and w tokens, in the dtype of the logits."""
    block = _logits(hidden, weight, bias)
    row, which, place = _inside(rows.places, block.shape[1])
    block[row, place] = -torch.inf
    block.sub_(rows.top[:, None]).exp_().mul_(rows.grad_rest[:, None])
    return block.index_put_((row, place), rows.grad_chosen[row, which], accumulate=True)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kind = accumulator(hidden)
    return linear(hidden.to(kind), weight.to(kind), bias)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left [a, b] @ right [b, c], accumulated in at least float32."""
    return linear(left, right.to(left.dtype).T)


def _inside(places: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of places [r, k]: row, column and value of those in [0, width), each [M]."""
    row, which = ((places >= 0) & (places < width)).nonzero(as_tuple=True)
    return row, which, places[row, which]


def _rows_and_tokens(rows: int) -> tuple[int, int]:
    """The shape of a block for so many rows."""
    step = max(1, min(rows, BLOCK_ROWS))
    return step, min(BLOCK_TOKENS, max(1, BLOCK_ELEMENTS // step))


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, count)) for start in range(0, count, step))
