"""`sample_rows`: K draws and the top-k of softmax((hidden @ weight^T + bias) / temperature), for the rows that ring.

A draw is the inverse of the cumulative distribution at a given uniform u: the smallest v with F(v) > u. One uniform serves a
draw, where Gumbel-max needs V of them: at V = 50,257 and K = 8 that is 402,056 Philox words a row against 16. Noise is an
argument, so any implementation must agree with the definition token for token, up to floating-point ties. The top-k is in
the order (falling probability, rising id), so ties go to the lower id, at the k-th place too.

Two levels do both. The vocabulary falls into blocks of `CDF_BLOCK` tokens; of each block only its largest logit and its mass
(the sum of exp(logit - row maximum)) are kept, [R, V / 128] of either. A draw inverts the blocks' masses in float64 and then
one block. The k blocks that come first in the order (falling maximum, rising block) hold the whole top-k: a token outside
them has k tokens before it. So the logits of K + k blocks a row are gathered, and no others.

The blocks and their logits come from one of two implementations, and all that follows is shared:
- torch (CPU): the logits of at most `BLOCK_ELEMENTS` elements are held, whatever R is, and their exponentials by the cacheful.
  Operations: 2 R D V and about 4 R V. Measured by tests/benchmarks/sample_rows.py.
- triton (CUDA): the logits of no row are held; see `sample_rows_triton`.

Float32 decides between neighbours: logits carry about sqrt(D) roundings, a block's mass about 1e-7 of itself. Two
implementations draw different tokens only where u lies within about 1e-6 of a border of F (tests: 1e-6 at D = 33).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.dispatch import accumulator, backend, check_head
from tsdfm.kernels.linear import linear
from tsdfm.kernels.row_blocks import CDF_BLOCK, Blocks

BLOCK_ELEMENTS = 1 << 21  # logits held at once on a CPU: 8 MiB of float32
CACHE_ELEMENTS = 1 << 18  # exponentials held at once on a CPU: 1 MiB of float32
PACKED_ROWS = 16  # with no more, the product packs no weights, so one call does
PRODUCT_TOKENS = 2048  # rows of weight multiplied at once on a CPU: the product packs (and widens) so many of them
NEGLIGIBLE = 80.0  # nats below the row's maximum at which a block has no mass: e^-80 is normal in float32, and 1e-35


class RowSamples(NamedTuple):
    """K draws and the top-k of each of R rows, with log-probabilities of the tempered distribution without the excluded id."""

    tokens: Tensor  # [R, K] int64 in [0, V)
    logprobs: Tensor  # [R, K] float32 (float64 from the reference), nats
    topk_ids: Tensor  # [R, k] int64 in [0, V), by falling probability, ties by rising id
    topk_logprobs: Tensor  # [R, k] as logprobs


def sample_rows_reference(  # noqa: PLR0913  the arguments of `sample_rows`
    hidden: Tensor, weight: Tensor, bias: Tensor | None, uniforms: Tensor, *, temperature: float = 1.0,
    excluded: int | None = None, top_k: int = 0,
) -> RowSamples:
    """K draws of each row and its top-k by the definition, in float64; holds all of [R, V].

    Arguments as of `sample_rows`, of any float dtype; log-probabilities float64, nats. Checks nothing.
    """
    logprob = _tempered(hidden.double(), weight.double(), bias, temperature, excluded).log_softmax(-1)
    cumulative = logprob.exp().cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    top = logprob.sort(dim=-1, descending=True, stable=True)
    return RowSamples(tokens, logprob.gather(-1, tokens), top.indices[:, :top_k], top.values[:, :top_k])


def sample_rows(  # noqa: PLR0913  four tensors, and three settings by name that have defaults
    hidden: Tensor, weight: Tensor, bias: Tensor | None, uniforms: Tensor, *, temperature: float = 1.0,
    excluded: int | None = None, top_k: int = 0,
) -> RowSamples:
    """K draws from the distribution of each of R rows, at given uniforms, and its exact top-k.

    Args:
        hidden: [R, D] float32, bfloat16 or float16, in any strides.
        weight: [V, D], same dtype.
        bias: [V], or None.
        uniforms: [R, K] float64 in [0, 1).
        temperature: > 0; divides the logits.
        excluded: an id that has probability zero ([MASK]), or None.
        top_k: k, from 0 to V.

    Returns:
        RowSamples with tokens [R, K], logprobs [R, K], topk_ids [R, k], topk_logprobs [R, k]; float32.

    Raises:
        ValueError: a temperature that is not positive, k out of range, shapes or dtypes that don't fit together, (on GPUs)
            float64.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be positive")
    if uniforms.ndim != 2 or len(uniforms) != len(hidden):
        raise ValueError(f"uniforms {tuple(uniforms.shape)} must be [{len(hidden)}, K]")
    if not 0 <= top_k <= len(weight):
        raise ValueError(f"top_k {top_k} must be from 0 to {len(weight)}, the size of the vocabulary")
    check_head(hidden, weight, bias)
    which = backend(hidden)
    if which == "reference":
        found = sample_rows_reference(
            hidden, weight, bias, uniforms, temperature=temperature, excluded=excluded, top_k=top_k)
        return RowSamples(found.tokens, found.logprobs.float(), found.topk_ids, found.topk_logprobs.float())
    rows, draws = uniforms.shape
    out = RowSamples(
        torch.empty(rows, draws, dtype=torch.long, device=hidden.device),
        torch.empty(rows, draws, dtype=torch.float32, device=hidden.device),
        torch.empty(rows, top_k, dtype=torch.long, device=hidden.device),
        torch.empty(rows, top_k, dtype=torch.float32, device=hidden.device),
    )
    gathered = (draws + top_k) * CDF_BLOCK
    if which == "triton":
        from tsdfm.kernels import sample_rows_triton as fused

        block_stats, step = fused.block_stats, fused.rows_at_once(len(weight), gathered)
    else:
        block_stats, step = _block_stats, _rows_per_block(len(weight) + gathered)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        drawn = _draw(block_stats(hidden[part], weight, bias, temperature, excluded), uniforms[part], top_k)
        for whole, piece in zip(out, drawn, strict=True):
            whole[part] = piece
    return out


def argmax_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, excluded: int | None = None) -> Tensor:
    """The likeliest token of each of R rows, the lowest such id: [R] int64; holds one block of logits at most, on a GPU none.

    Args:
        hidden: [R, D] float32, bfloat16 or float16, in any strides.
        weight: [V, D], same dtype.
        bias: [V], or None.
        excluded: an id that is never given ([MASK]), or None.

    Raises:
        ValueError: shapes or dtypes that don't fit together, (on GPUs) float64.
    """
    check_head(hidden, weight, bias)
    which = backend(hidden)
    if which == "reference":
        return _tempered(hidden.double(), weight.double(), bias, 1.0, excluded).argmax(-1)
    if which == "triton":
        from tsdfm.kernels import sample_rows_triton as fused

        return fused.argmax(hidden, weight, bias, excluded)
    out = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    step = _rows_per_block(len(weight))
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        out[part] = _tempered(hidden[part], weight, bias, 1.0, excluded).argmax(-1)
    return out


def _rows_per_block(elements_per_row: int) -> int:
    return max(1, BLOCK_ELEMENTS // elements_per_row)


def _tempered(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, excluded: int | None) -> Tensor:
    """Tempered logits [r, V]; the product accumulates and rounds in float32 for narrower inputs."""
    kind = accumulator(hidden)
    bias = None if bias is None else bias.to(kind)
    hidden = hidden.to(kind)
    if len(weight) <= PRODUCT_TOKENS or len(hidden) <= PACKED_ROWS:
        logits = linear(hidden, weight.to(kind), bias)
    else:
        logits = torch.empty(len(hidden), len(weight), dtype=kind, device=hidden.device)
        for start in range(0, len(weight), PRODUCT_TOKENS):
            ids = slice(start, start + PRODUCT_TOKENS)
            logits[:, ids] = linear(hidden, weight[ids].to(kind), None if bias is None else bias[ids])
    if temperature != 1.0:
        logits /= temperature
    if excluded is not None:
        logits[:, excluded] = -torch.inf
    return logits


def _block_stats(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, excluded: int | None) -> Blocks:
    """The blocks of r rows, whose logits [r, V] are held."""
    logits = _tempered(hidden, weight, bias, temperature, excluded).float()
    vocab = logits.shape[1]
    maxima = _by_block(logits, torch.amax)
    peak = maxima.amax(-1, keepdim=True)
    step = max(1, CACHE_ELEMENTS // vocab)
    pieces = zip(logits.split(step), peak.split(step), strict=True)
    # float32 is enough for the sum of 128 masses of at most 1
    masses = torch.cat([_by_block((part - top).exp_(), torch.sum) for part, top in pieces])

    def gather_blocks(blocks: Tensor) -> Tensor:
        # ids, found: [r, H, CDF_BLOCK]
        ids = blocks[..., None] * CDF_BLOCK + torch.arange(CDF_BLOCK, device=blocks.device)
        found = logits.gather(1, ids.clamp_max(vocab - 1).flatten(1)).view(ids.shape)
        return found.masked_fill_(ids >= vocab, -torch.inf)

    return Blocks(maxima, masses, gather_blocks)


def _by_block(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """[r, V] -> [r, B], every block of CDF_BLOCK columns reduced to one number; the last block may be short."""
    whole = values.shape[1] // CDF_BLOCK * CDF_BLOCK
    full = reduce(values[:, :whole].unflatten(1, (-1, CDF_BLOCK)), -1) if whole else values[:, :0]
    if whole == values.shape[1]:
        return full
    return torch.cat([full, reduce(values[:, whole:], -1, keepdim=True)], 1)


def _draw(blocks: Blocks, uniforms: Tensor, top_k: int) -> RowSamples:
    """Both levels, for r rows: uniforms [r, K] and blocks -> draws and top-k."""
    draws, maxima = uniforms.shape[1], blocks.maxima
    peak = maxima.amax(-1, keepdim=True)
    cumulative = blocks.masses.double().masked_fill(maxima < peak - NEGLIGIBLE, 0).cumsum(-1)
    total = cumulative[:, -1:]
    target = uniforms.contiguous() * total
    # Rounding can put the target at the very end: the last block with mass is the answer then.
    last_block = (cumulative < total).sum(-1, keepdim=True)
    block = torch.minimum(torch.searchsorted(cumulative, target, right=True), last_block)
    before = F.pad(cumulative, (1, 0)).gather(-1, block)
    best = _top(maxima, min(top_k, maxima.shape[1])).sort(-1).values
    # shifted: [r, K + blocks of the top-k, CDF_BLOCK]
    shifted = blocks.gather_blocks(torch.cat([block, best], 1)) - peak[..., None]
    hit, candidates = shifted[:, :draws], shifted[:, draws:].flatten(1)
    inside = hit.exp().double().cumsum(-1)
    last_token = (inside < inside[..., -1:]).sum(-1)
    offset = torch.searchsorted(inside, (target - before)[..., None], right=True)[..., 0]
    offset = torch.minimum(offset, last_token)
    log_total = total.log().float()
    place = _top(candidates, top_k)
    return RowSamples(
        block * CDF_BLOCK + offset, hit.gather(-1, offset[..., None])[..., 0] - log_total,
        best.gather(1, place // CDF_BLOCK) * CDF_BLOCK + place % CDF_BLOCK, candidates.gather(1, place) - log_total,
    )


def _top(values: Tensor, k: int) -> Tensor:
    """Places [r, k] of the largest of values [r, n] float32, in the order (falling value, rising place).

    Keys of 64 bits that are never equal: the float's bits, made to rise with it, above the place counted backwards.
    """
    bits = (values + 0.0).view(torch.int32)  # -0.0 is 0.0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    places = torch.arange(values.shape[1], device=values.device)
    return ((rising << 32) + (values.shape[1] - 1 - places)).topk(k, -1).indices
