"""`sample_rows` and `argmax_rows` on a GPU: Triton kernels that hold no row of logits.

What is done with the statistics of blocks and the logits of some (inverting masses, choosing blocks, ordering the top-k) is
small, and is the shared torch code of `sample_rows`; the plain-torch counterpart of the kernels is `sample_rows._block_stats`.
Rows are taken `HELD_ELEMENTS` at a time.

    l[r, v] = (sum_d hidden[r, d] weight[v, d] + bias[v]) / temperature,  -inf for the excluded id;  block b: 128 ids
    block_stats:    maxima[r, b] = max of l over b,  sums[r, b] = sum over b of exp(l - maxima[r, b])  [R, V / 128] float32 each
    gather_blocks:  l over block[r, h], for H = K + k chosen blocks of every row                       [R, H, 128] float32

Operations: 2 R D V for the statistics, 256 R D H to gather (6 % of the former at H = 24, V = 50,257). Bytes, for s bytes an
element: s (V D + R D) in, 8 R V / 128 out, then at most s (V D + R D H / 16) in and 512 R H out. Logits of their own would be
4 R V out and 8 R V or more in again (top-k, exponentials, sums): 206 and 412 MB at V = 50,257 and R = 1,024, against 3 and
13 MB here. Gathering row by row would read 128 s D bytes per block and row, 24 x 196 KB at D = 768 in bfloat16, 1.4 ms of the
memory of an H100 for 1,024 rows, so the pairs (row, block) are sorted by block: a tile of 16 pairs reads each of its blocks
once, for all of its rows, and mostly there is one.

Floor on an H100 (SXM: 3.35 TB/s; 989 Tflop/s in bfloat16, 495 in TF32, of which float32 here takes three): with D = 768 and
V = 50,257 the weight takes 23 us (bfloat16) or 46 us (float32) to read; the products of R = 1,024 rows take 85 us or
0.51 ms with the gathered ones, and those of R = 38 rows less than the weight's reading. So small R is bound by memory and
large R by arithmetic, as the bare product is. Not measured on a GPU.

Tested against the float64 definition in Triton's interpreter, over the tests of `sample_rows`; compiled ahead of time for sm_80
and sm_90 without spills.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from tsdfm.kernels.logits_tile_triton import logits_tile
from tsdfm.kernels.row_blocks import CDF_BLOCK, Blocks
from tsdfm.kernels.tile_table import tile_for, widened

HELD_ELEMENTS = 1 << 24  # float32 numbers held for one lot of rows: 64 MiB, 1,087 rows at V = 50,257, K = 8, k = 16
PAIRS, SPLIT = 16, 4  # pairs (row, block) of a tile that is gathered, and programs that share its blocks


@triton.jit
def _tempered(logits, block, temperature, excluded, TOKENS: tl.constexpr):
    token = block * TOKENS + tl.arange(0, TOKENS)
    return tl.where((token != excluded)[None, :], tl.math.div_rn(logits, temperature), float("-inf"))


@triton.jit(do_not_specialize=["rows", "excluded"])
def block_stats_kernel(  # noqa: PLR0913  a kernel takes each tensor and stride apart
    hidden, weight, bias, maxima, second, rows, vocab, depth, hidden_row, hidden_column, weight_row, weight_column, bias_step,
    temperature, excluded, WIDEN: tl.constexpr, ARGMAX: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, DEPTH: tl.constexpr,
):
    """Statistics of every block of every row: maxima [R, B] float32 of its tempered logits, and second [R, B].

    second holds the sum of exp(logit - maximum), float32; or, for ARGMAX, the lowest place of the maximum, int32. One program
    per (tile of rows, block); tiles of one block are neighbours, so that its weights are read once.
    """
    row_tiles = tl.cdiv(rows, ROWS)
    block = tl.program_id(0) // row_tiles
    row = tl.program_id(0) % row_tiles * ROWS + tl.arange(0, ROWS)
    live = row < rows
    logits = logits_tile(
        hidden, weight, bias, row, live, block, vocab, depth, hidden_row, hidden_column, weight_row, weight_column, bias_step,
        WIDEN, HAS_BIAS, BLOCK, ROWS, DEPTH)
    logits = _tempered(logits, block, temperature, excluded, BLOCK)
    out = row.to(tl.int64) * tl.cdiv(vocab, BLOCK) + block
    if ARGMAX:
        top, place = tl.max(logits, 1, return_indices=True, return_indices_tie_break_left=True)
        tl.store(second + out, place, mask=live)
    else:
        top = tl.max(logits, 1)
        shift = tl.where(top == float("-inf"), 0.0, top)
        tl.store(second + out, tl.sum(tl.exp(logits - shift[:, None]), 1), mask=live)
    tl.store(maxima + out, top, mask=live)


@triton.jit(do_not_specialize=["pairs", "excluded"])
def gather_blocks_kernel(  # noqa: PLR0913  a kernel takes each tensor and stride apart
    hidden, weight, bias, blocks, order, out, pairs, per_row, vocab, depth, hidden_row, hidden_column, weight_row,
    weight_column, bias_step, temperature, excluded, WIDEN: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
    PAIRS: tl.constexpr, DEPTH: tl.constexpr, SPLIT: tl.constexpr,
):
    """Tempered logits of P pairs (row, block), to out [P, BLOCK] float32; blocks [P] int64 rises.

    order [P] int64 holds where in out the logits of each pair belong; the row of a pair is that place // per_row.
    A tile of pairs numbers its distinct blocks 0, 1, ...; program (tile, j) computes number j, j + SPLIT, ...
    """
    lane = tl.arange(0, PAIRS)
    pair = tl.program_id(0) * PAIRS + lane
    live = pair < pairs
    block = tl.load(blocks + pair, mask=live, other=0).to(tl.int32)
    before = tl.load(blocks + pair - 1, mask=live & (lane > 0), other=0).to(tl.int32)
    place = tl.load(order + pair, mask=live, other=0)
    number = tl.cumsum((live & (lane > 0) & (block != before)).to(tl.int32), 0)
    for wanted in range(tl.program_id(1), tl.max(number, 0) + 1, SPLIT):
        mine = live & (number == wanted)
        current = tl.max(tl.where(mine, block, 0), 0)
        logits = logits_tile(
            hidden, weight, bias, place // per_row, mine, current, vocab, depth, hidden_row, hidden_column, weight_row,
            weight_column, bias_step, WIDEN, HAS_BIAS, BLOCK, PAIRS, DEPTH)
        logits = _tempered(logits, current, temperature, excluded, BLOCK)
        tl.store(out + place[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :], logits, mask=mine[:, None])


def rows_at_once(vocab: int, gathered: int) -> int:
    """The number of rows whose blocks, and whose `gathered` logits each, fill `HELD_ELEMENTS`; at least 1.

    For a vocabulary of `vocab` tokens; int64 keys and float64 sums are counted.
    """
    return max(1, HELD_ELEMENTS // (8 * -(-vocab // CDF_BLOCK) + 4 * gathered))


def block_stats(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, excluded: int | None) -> Blocks:
    """Blocks of r rows; none of their logits is kept, those of `gather_blocks` are computed anew.

    hidden [r, D], weight [V, D], bias [V] or None, all on one GPU; temperature > 0; an excluded id, or None. Checks no shapes.
    Raises ValueError for elements of 8 bytes.
    """
    maxima, sums = _launch_block_stats(hidden, weight, bias, temperature, excluded, argmax=False)
    masses = sums * (maxima - maxima.amax(-1, keepdim=True)).double().exp()

    def gather_blocks(blocks: Tensor) -> Tensor:
        rows, per_row = blocks.shape
        out = torch.empty(rows, per_row, CDF_BLOCK, dtype=torch.float32, device=hidden.device)
        ordered, order = blocks.flatten().sort()
        if len(order):
            shape = tile_for(PAIRS, hidden)
            with torch.cuda.device_of(hidden):
                gather_blocks_kernel[(triton.cdiv(len(order), PAIRS), SPLIT)](
                    hidden, weight, bias, ordered, order, out, len(order), per_row,
                    *_common(hidden, weight, bias, temperature, excluded),
                    HAS_BIAS=bias is not None, BLOCK=CDF_BLOCK, PAIRS=PAIRS, DEPTH=shape.depth, SPLIT=SPLIT,
                    num_warps=shape.warps, num_stages=shape.stages)
        return out

    return Blocks(maxima, masses, gather_blocks)


def argmax(hidden: Tensor, weight: Tensor, bias: Tensor | None, excluded: int | None) -> Tensor:
    """The likeliest token of each of R rows, the lowest such id: [R] int64; holds `HELD_ELEMENTS` numbers, and no logits.

    hidden [R, D], weight [V, D], bias [V] or None, all on one GPU; an excluded id, or None. Checks no shapes. Raises
    ValueError for elements of 8 bytes.
    """
    out = torch.empty(len(hidden), dtype=torch.long, device=hidden.device)
    step = rows_at_once(len(weight), 0)
    for start in range(0, len(hidden), step):
        maxima, places = _launch_block_stats(hidden[start : start + step], weight, bias, 1.0, excluded, argmax=True)
        block = maxima.argmax(-1, keepdim=True)  # the first of equal ones
        out[start : start + step] = (block * CDF_BLOCK + places.gather(1, block))[:, 0]
    return out


def _launch_block_stats(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, excluded: int | None, *, argmax: bool,
) -> tuple[Tensor, Tensor]:
    rows, blocks = len(hidden), triton.cdiv(len(weight), CDF_BLOCK)
    maxima = torch.empty(rows, blocks, dtype=torch.float32, device=hidden.device)
    second = torch.empty(rows, blocks, dtype=torch.int32 if argmax else torch.float32, device=hidden.device)
    shape = tile_for(rows, hidden)
    with torch.cuda.device_of(hidden):
        block_stats_kernel[(triton.cdiv(rows, shape.rows) * blocks,)](
            hidden, weight, bias, maxima, second, rows, *_common(hidden, weight, bias, temperature, excluded), ARGMAX=argmax,
            HAS_BIAS=bias is not None, BLOCK=CDF_BLOCK, ROWS=shape.rows, DEPTH=shape.depth,
            num_warps=shape.warps, num_stages=shape.stages)
    return maxima, second


def _common(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, excluded: int | None
) -> tuple[float | int, ...]:
    """The arguments that both kernels share."""
    return (*weight.shape, *hidden.stride(), *weight.stride(), 0 if bias is None else bias.stride(0), temperature,
            -1 if excluded is None else excluded, widened(hidden))
