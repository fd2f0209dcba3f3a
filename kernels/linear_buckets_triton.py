"""`linear_buckets` and `summed_nll` on a GPU: Triton kernels that hold no logits at all (forward), or a block of G (backward).

Forward, one launch: program (tile of rows, part of the vocabulary) walks its blocks of 128 tokens with an online log-sum-exp,

    m' = max(m, max_v l[n, v]),   z' = z exp(m - m') + sum_v exp(l[n, v] - m')        over v not in ids[n],

and stores the logits of chosen tokens as it meets them. With few rows the vocabulary is split over enough programs for two to
sit on every processor; the program that finishes last joins the parts, in their order, so the result does not depend on the
race. For `summed_nll` it goes on to sum each candidate's weighted -log p. Programs of one part are neighbours and walk in step,
so a block of weights is read from memory once and from L2 by the rest.

Backward: `gradient_block` computes a block of G (see `linear_buckets`) in one launch, product and all, and the three products
with it are cuBLAS's, summed in a fixed order. G is at most `HELD_ELEMENTS`, half of an H100's L2 in bfloat16. Fusing those
products, too, would take atomic additions in the order of the race, and so give up repeatable training for the writing and
reading of G: 3 s N V bytes in and out of L2 against 8 N D V operations.

Floor on an H100 (SXM: 989 Tflop/s in bfloat16, 495 in TF32 of which float32 here takes three, 3.35 TB/s), at N = 2,048,
D = 768, V = 50,257: the product takes 0.16 ms in bfloat16 and 0.96 ms in float32, the reading of the weight 23 and 46 us, the
N V exponentials 25 us of the special units (16 a clock on each of 132 processors); so arithmetic binds, and reading [N, V]
logits in and out (0.8 GB, 0.25 ms and more) is what is saved. A chosen token of each row costs a comparison in the 28% of tiles
of 128 rows that hold one. At N = 16 the weight's reading binds. Not measured on a GPU.

Tested against the float64 definition in Triton's interpreter, over the tests of `linear_buckets` and `linear_logprob`; compiled
ahead of time for sm_80 and sm_90.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tsdfm.kernels.buckets import Buckets, RowGradients, ScoredRows
from tsdfm.kernels.logits_tile_triton import logits_tile
from tsdfm.kernels.tile_table import TOKENS, Tile, processors, tile_for, widened

HELD_ELEMENTS = 1 << 23  # of a block of G
GRADIENT_ROWS = 8192  # of hidden, in one block of G
JOINED = 1024  # rows joined, or added, at once by the program that finishes last


@triton.jit
def _logprob(chosen, rest):
    """-softplus(rest - chosen)."""
    gap = (rest - chosen).to(tl.float32)  # rest is float64
    return -(tl.maximum(gap, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(gap))))


@triton.jit
def _join(parts_max, parts_sum, rest, rows, SPLITS: tl.constexpr, JOINED: tl.constexpr):
    """The log-sum-exp of every row from those of its SPLITS parts, each [SPLITS, N]."""
    for start in range(0, rows, JOINED):
        n = start + tl.arange(0, JOINED)
        live = n < rows
        peak = tl.full((JOINED,), float("-inf"), tl.float32)
        for part in range(SPLITS):
            at = part * rows.to(tl.int64) + n
            peak = tl.maximum(peak, tl.load(parts_max + at, mask=live, other=float("-inf"), cache_modifier=".cg"))
        shift = tl.where(peak == float("-inf"), 0.0, peak)
        mass = tl.zeros((JOINED,), tl.float32)
        for part in range(SPLITS):
            at = part * rows.to(tl.int64) + n
            top = tl.load(parts_max + at, mask=live, other=float("-inf"), cache_modifier=".cg")
            mass += tl.load(parts_sum + at, mask=live, other=0.0, cache_modifier=".cg") * tl.exp(top - shift)
        tl.store(rest + n, peak.to(tl.float64) + tl.log(mass), mask=live)


@triton.jit
def _summed_nll(  # noqa: PLR0913  a kernel takes each tensor and stride apart
    chosen, rest, weights, counts, out, candidates, JOINED: tl.constexpr
):
    """out[c] = -sum of weights[n] log p[n] over the counts[c] rows of candidate c, which follow one another."""
    first = tl.zeros((), tl.int64)
    for candidate in range(candidates):
        last = first + tl.load(counts + candidate)
        sums = tl.zeros((JOINED,), tl.float32)
        for start in range(first, last, JOINED):
            n = start + tl.arange(0, JOINED)
            live = n < last
            logprob = _logprob(tl.load(chosen + n, mask=live, other=0.0, cache_modifier=".cg"),
                               tl.load(rest + n, mask=live, other=0.0, cache_modifier=".cg"))
            sums -= tl.where(live, logprob * tl.load(weights + n, mask=live, other=0.0), 0.0)
        tl.store(out + candidate, tl.sum(sums, 0))
        first = last


@triton.jit(do_not_specialize=["rows", "candidates"])
def buckets_kernel(  # noqa: PLR0913, C901  a kernel takes each tensor and stride apart; its branches are compile-time
    hidden, weight, bias, picked, ids, chosen, rest, parts_max, parts_sum, finished, weights, counts, nll, rows, vocab, depth,
    candidates, hidden_row, hidden_column, weight_row, weight_column, bias_step, CHOSEN: tl.constexpr,
    NLL: tl.constexpr, WIDEN: tl.constexpr, HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr,
    DEPTH: tl.constexpr, SPLITS: tl.constexpr, JOINED: tl.constexpr,
):
    """Buckets of the rows picked [N] of hidden: ids [N, CHOSEN] -> chosen [N, CHOSEN], rest [N]; and for NLL the sums nll [C].

    One program per (tile of rows, part of the vocabulary); parts_max and parts_sum [SPLITS, N] hold what is still to be joined.
    """
    row_tiles = tl.cdiv(rows, ROWS)
    part = tl.program_id(0) // row_tiles
    n = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    live = n < rows
    row = tl.load(picked + n, mask=live, other=0)
    chosen_row, ids_row = chosen + n.to(tl.int64) * CHOSEN, ids + n.to(tl.int64) * CHOSEN
    blocks = tl.cdiv(vocab, TOKENS)
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    mass = tl.zeros((ROWS,), tl.float32)
    for block in range(part * blocks // SPLITS, (part + 1) * blocks // SPLITS):
        logits = logits_tile(
            hidden, weight, bias, row, live, block, vocab, depth, hidden_row, hidden_column, weight_row, weight_column,
            bias_step, WIDEN, HAS_BIAS, TOKENS, ROWS, DEPTH)
        token = block * TOKENS + tl.arange(0, TOKENS)
        for j in range(CHOSEN):
            id_j = tl.load(ids_row + j, mask=live, other=-TOKENS).to(tl.int32)
            here = id_j // TOKENS == block
            if tl.max(here.to(tl.int32), 0) > 0:
                found = tl.sum(tl.where(token[None, :] == id_j[:, None], logits, 0.0), 1)
                tl.store(chosen_row + j, found, mask=live & here)
        # A second round, since an id may stand twice in a row.
        for j in range(CHOSEN):
            id_j = tl.load(ids_row + j, mask=live, other=-TOKENS).to(tl.int32)
            if tl.max((id_j // TOKENS == block).to(tl.int32), 0) > 0:
                logits = tl.where(token[None, :] == id_j[:, None], float("-inf"), logits)
        top = tl.maximum(peak, tl.max(logits, 1))
        shift = tl.where(top == float("-inf"), 0.0, top)
        mass = mass * tl.exp(peak - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
        peak = top
    if SPLITS == 1:
        tl.store(rest + n, peak.to(tl.float64) + tl.log(mass), mask=live)
    else:
        at = part * rows.to(tl.int64) + n
        tl.store(parts_max + at, peak, mask=live)
        tl.store(parts_sum + at, mass, mask=live)
    if SPLITS > 1 or NLL:
        # All of this program's stores come before its count, and the last to count sees those of all programs.
        tl.debug_barrier()
        if tl.atomic_add(finished, 1, sem="acq_rel") == tl.num_programs(0) - 1:
            if SPLITS > 1:
                _join(parts_max, parts_sum, rest, rows, SPLITS, JOINED)
                tl.debug_barrier()
            if NLL:
                _summed_nll(chosen, rest, weights, counts, nll, candidates, JOINED)


@triton.jit(do_not_specialize=["rows", "width"])
def gradient_kernel(  # noqa: PLR0913  a kernel takes each tensor and stride apart
    hidden, weight, bias, places, top, grad_chosen, grad_rest, out, rows, width, depth, hidden_row, hidden_column, weight_row,
    weight_column, bias_step, CHOSEN: tl.constexpr, WIDEN: tl.constexpr, HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):
    """A block of G, to out [N, width], for `width` tokens of weight; places [N, CHOSEN] of the chosen ones among them."""
    row_tiles = tl.cdiv(rows, ROWS)
    block = tl.program_id(0) // row_tiles
    n = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    live = n < rows
    logits = logits_tile(
        hidden, weight, bias, n, live, block, width, depth, hidden_row, hidden_column, weight_row, weight_column, bias_step,
        WIDEN, HAS_BIAS, TOKENS, ROWS, DEPTH)
    token = block * TOKENS + tl.arange(0, TOKENS)
    of_row = n.to(tl.int64)
    share = tl.exp(logits - tl.load(top + n, mask=live, other=0.0)[:, None])
    share *= tl.load(grad_rest + n, mask=live, other=0.0)[:, None]
    at = out + of_row[:, None] * width + token[None, :]
    tl.store(at, share.to(out.dtype.element_ty), mask=live[:, None] & (token < width)[None, :])
    tl.debug_barrier()  # what follows overwrites some of it
    for j in range(CHOSEN):
        place = tl.load(places + of_row * CHOSEN + j, mask=live, other=-1)
        here = live & (place >= block * TOKENS) & (place < tl.minimum((block + 1) * TOKENS, width))
        if tl.max(here.to(tl.int32), 0) > 0:
            arriving = tl.zeros((ROWS,), tl.float32)
            for other in range(CHOSEN):  # an id may stand twice in a row: all of them write the sum
                same = here & (tl.load(places + of_row * CHOSEN + other, mask=live, other=-1) == place)
                arriving += tl.load(grad_chosen + of_row * CHOSEN + other, mask=same, other=0.0)
            tl.store(out + of_row * width + place, arriving.to(out.dtype.element_ty), mask=here)


def buckets_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor) -> Buckets:
    """Buckets of every row, in one launch: hidden [N, D], weight [V, D], bias [V] or None, ids [N, k] int64 in [0, V).

    chosen [N, k] float32 (NaN for an id outside the vocabulary) and rest [N] float64, nats. All on one GPU; checks no shapes.
    Raises ValueError for elements of 8 bytes.
    """
    return _launch(hidden, weight, bias, ids, None)[0]


def summed_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, scored: ScoredRows) -> Tensor:
    """Weighted negative log-likelihood of each of C candidates, in one launch: [C] float32, nats.

    hidden [_, D], weight [V, D], bias [V] or None, and the N scored rows of hidden; all on one GPU; checks no shapes. Raises
    ValueError for elements of 8 bytes.
    """
    return _launch(hidden, weight, bias, scored.ids[:, None], scored)[1]


def splits_for(rows: int, tile: Tile, vocab: int, processors: int) -> int:
    """The number of parts of the vocabulary: enough for two programs on each processor, a power of two, and a block for each.

    For `rows` rows in tiles of `tile.rows`, and a vocabulary of `vocab` tokens.
    """
    wanted = 2 * processors / max(1, triton.cdiv(rows, tile.rows))
    parts = 1
    while parts < wanted and 2 * parts * TOKENS <= vocab:
        parts *= 2
    return parts


def _launch(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, ids: Tensor, scored: ScoredRows | None
) -> tuple[Buckets, Tensor]:
    """Buckets of all rows of hidden, or of those that are scored, and the summed NLL [C] of the latter's candidates."""
    rows, device = len(ids), hidden.device
    picked = torch.arange(rows, device=device) if scored is None else scored.picked
    weights, counts = (None, None) if scored is None else (scored.weights, scored.counts)
    tile = tile_for(rows, hidden)
    splits = splits_for(rows, tile, len(weight), processors(hidden))
    # NaN: no such id
    out = Buckets(torch.full(ids.shape, torch.nan, device=device), torch.empty(rows, dtype=torch.float64, device=device))
    parts = torch.empty(2, splits if splits > 1 else 0, rows, device=device)
    finished = torch.zeros(1, dtype=torch.int32, device=device)
    candidates = 0 if counts is None else len(counts)
    nll = (torch.empty if rows else torch.zeros)(candidates, device=device)
    if rows:
        with torch.cuda.device_of(hidden):
            buckets_kernel[(triton.cdiv(rows, tile.rows) * splits,)](
                hidden, weight, bias, picked, ids.contiguous(), *out, *parts, finished, weights, counts, nll, rows,
                *weight.shape, candidates, *_strides(hidden, weight, bias), CHOSEN=ids.shape[1], NLL=scored is not None,
                SPLITS=splits, JOINED=JOINED, **_shape(hidden, bias, tile))
    return out, nll


def gradient_block(hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: RowGradients) -> Tensor:
    """G [r, w] of r rows and w tokens, in the dtype of hidden: hidden [r, D], weight [w, D], bias [w] or None.

    All on one GPU; checks no shapes. Raises ValueError for elements of 8 bytes.
    """
    out = torch.empty(len(hidden), len(weight), dtype=hidden.dtype, device=hidden.device)
    tile = tile_for(len(hidden), hidden)
    if out.numel():
        with torch.cuda.device_of(hidden):
            gradient_kernel[(triton.cdiv(len(hidden), tile.rows) * triton.cdiv(len(weight), TOKENS),)](
                hidden, weight, bias, rows.places.contiguous(), rows.top, rows.grad_chosen.contiguous(),
                rows.grad_rest.contiguous(), out, *out.shape, hidden.shape[1], *_strides(hidden, weight, bias),
                CHOSEN=rows.places.shape[1], **_shape(hidden, bias, tile))
    return out


def _strides(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    return (*hidden.stride(), *weight.stride(), 0 if bias is None else bias.stride(0))


def _shape(hidden: Tensor, bias: Tensor | None, tile: Tile) -> dict[str, int]:
    """The compile-time arguments that both kernels share."""
    return {"WIDEN": widened(hidden), "HAS_BIAS": bias is not None, "TOKENS": TOKENS, "ROWS": tile.rows, "DEPTH": tile.depth,
            "num_warps": tile.warps, "num_stages": tile.stages}


def product(left: Tensor, right: Tensor) -> Tensor:
    """The product left [a, b] @ right [b, c], of one dtype, as [a, c] float32; cuBLAS accumulates narrower inputs so."""
    if left.is_cuda and left.dtype != torch.float32:
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.float() @ right.float()


def rows_and_tokens(rows: int) -> tuple[int, int]:
    """The shape of a block of G for so many rows: how many of them, by how many tokens; `HELD_ELEMENTS`, or TOKENS a row."""
    step = max(1, min(rows, GRADIENT_ROWS))
    return step, max(TOKENS, HELD_ELEMENTS // step)
