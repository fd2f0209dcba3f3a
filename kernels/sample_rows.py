"""`sample_rows`: K draws and the top-k of softmax((hidden @ weight^T + bias) / temperature), for the rows that ring.

A draw is the inverse of the cumulative distribution at a given uniform u: the smallest v with F(v) > u. One uniform serves a
draw, where Gumbel-max needs V of them: at V = 50,257 and K = 8 that is 402,056 Philox words a row against 16. Noise is an
argument, so any implementation must agree with the definition token for token, up to floating-point ties.

The blocked path inverts in two levels, block masses first and then the one block that was hit, in float64, from float32
logits. Operations: 2 R D V and about 6 R V. Held at any moment: one block of at most `BLOCK_ELEMENTS` logits, whatever R is.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.linear import linear
from tsdfm.kernels.linear_logprob import rows_per_block

CDF_BLOCK = 128  # tokens per first-level block of the cumulative distribution


class RowSamples(NamedTuple):
    """Draws of R rows. Log-probabilities are those of the tempered distribution, [MASK] excluded."""

    tokens: Tensor  # [R, K] int64
    logprobs: Tensor  # [R, K]
    topk_ids: Tensor  # [R, k] int64, by falling probability
    topk_logprobs: Tensor  # [R, k]


def sample_rows_reference(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, uniforms: Tensor, *, temperature: float = 1.0,
    excluded: int | None = None, top_k: int = 0,
) -> RowSamples:
    """The definition, in float64; holds all of [R, V]."""
    logprob = _tempered(hidden.double(), weight.double(), _double(bias), temperature, excluded).log_softmax(-1)
    cumulative = logprob.exp().cumsum(-1)
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    top = logprob.topk(top_k, -1)
    return RowSamples(tokens, logprob.gather(-1, tokens), top.indices, top.values)


def sample_rows(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, uniforms: Tensor, *, temperature: float = 1.0,
    excluded: int | None = None, top_k: int = 0,
) -> RowSamples:
    """Draw K tokens for each of R rows, and keep the top-k of its distribution.

    Args:
        hidden: [R, D] float32.
        weight: [V, D] float32.
        bias: [V], or None.
        uniforms: [R, K] float64 in [0, 1).
        temperature: > 0; divides the logits.
        excluded: an id that has probability zero ([MASK]), or None.
        top_k: k, from 0 to V.

    Returns:
        RowSamples with tokens [R, K], logprobs [R, K], topk_ids [R, k], topk_logprobs [R, k].

    Raises:
        ValueError: a temperature that is not positive, or uniforms of another number of rows.
    """
    if temperature <= 0:
        raise ValueError(f"temperature {temperature} must be positive")
    if uniforms.ndim != 2 or len(uniforms) != len(hidden):
        raise ValueError(f"uniforms {tuple(uniforms.shape)} must be [{len(hidden)}, K]")
    rows, draws = uniforms.shape
    out = RowSamples(
        torch.empty(rows, draws, dtype=torch.long, device=hidden.device), hidden.new_empty(rows, draws),
        torch.empty(rows, top_k, dtype=torch.long, device=hidden.device), hidden.new_empty(rows, top_k),
    )
    padded = -(-len(weight) // CDF_BLOCK) * CDF_BLOCK
    step = rows_per_block(padded + draws * CDF_BLOCK)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        logits = _tempered(hidden[part], weight, bias, temperature, excluded)
        logits -= logits.amax(-1, keepdim=True)
        tokens, total = _invert(logits.exp(), uniforms[part])
        log_total = total.log().to(logits.dtype)
        out.tokens[part] = tokens
        out.logprobs[part] = logits.gather(-1, tokens) - log_total
        if top_k:
            best = logits.topk(top_k, -1)
            out.topk_ids[part], out.topk_logprobs[part] = best.indices, best.values - log_total
    return out


def argmax_rows(hidden: Tensor, weight: Tensor, bias: Tensor | None, *, excluded: int | None = None) -> Tensor:
    """The likeliest token of each row: hidden [R, D] -> [R] int64; never holds more than one block of logits."""
    out = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    step = rows_per_block(len(weight))
    for start in range(0, len(hidden), step):
        part = slice(start, start + step)
        out[part] = _tempered(hidden[part], weight, bias, 1.0, excluded).argmax(-1)
    return out


def _double(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.double()


def _tempered(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, excluded: int | None) -> Tensor:
    logits = linear(hidden, weight, bias)
    if temperature != 1.0:
        logits /= temperature
    if excluded is not None:
        logits[:, excluded] = -torch.inf
    return logits


def _invert(mass: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Unnormalised mass [r, V] and uniforms [r, K] -> tokens [r, K] and total mass [r, 1] (float64)."""
    rows, vocab = mass.shape
    # blocks: [r, V / CDF_BLOCK, CDF_BLOCK], the tail padded with zero mass
    blocks = F.pad(mass, (0, -vocab % CDF_BLOCK)).view(rows, -1, CDF_BLOCK)
    cumulative = blocks.sum(-1, dtype=torch.float64).cumsum(-1)
    total = cumulative[:, -1:]
    target = uniforms * total
    # Rounding can put the target at the very end: the last block with mass is the answer then.
    last_block = (cumulative < total).sum(-1, keepdim=True)
    block = torch.minimum(torch.searchsorted(cumulative, target, right=True), last_block)
    before = F.pad(cumulative, (1, 0)).gather(-1, block)
    # inside: [r, K, CDF_BLOCK], the hit block of each draw
    inside = blocks[torch.arange(rows, device=mass.device)[:, None], block].double().cumsum(-1)
    last_token = (inside < inside[..., -1:]).sum(-1)
    offset = torch.searchsorted(inside, (target - before)[..., None], right=True)[..., 0]
    return block * CDF_BLOCK + torch.minimum(offset, last_token), total
