"""The tile that all Triton kernels share: logits of some rows over one block of the vocabulary, in float32."""

import triton
import triton.language as tl


@triton.jit
def logits_tile(  # noqa: PLR0913  a kernel takes each tensor and stride apart
    hidden, weight, bias, row, live, block, vocab, depth, hidden_row, hidden_column, weight_row, weight_column, bias_step,
    WIDEN: tl.constexpr, HAS_BIAS: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):
    """Logits [ROWS, TOKENS] float32 of rows `row` [ROWS] of hidden [_, D] over one block of weight [V, D]; bias [V] or None.

    Rows that are not `live` are not read, and give the bias alone; -inf beyond the vocabulary. Offsets are 64-bit, since N D
    and V D may pass 2^31. Float32 products are "tf32x3": three TF32 products, about as exact as float32.
    """
    token = block * TOKENS + tl.arange(0, TOKENS)
    known = token < vocab
    x = hidden + row.to(tl.int64)[:, None] * hidden_row
    w = weight + token.to(tl.int64)[None, :] * weight_row
    sums = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in range(0, depth, DEPTH):
        d = start + tl.arange(0, DEPTH)
        inside = d < depth
        left = tl.load(x + d[None, :] * hidden_column, mask=live[:, None] & inside[None, :], other=0.0)
        right = tl.load(w + d[:, None] * weight_column, mask=known[None, :] & inside[:, None], other=0.0)
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        sums = tl.dot(left, right, sums, input_precision="tf32x3")
    if HAS_BIAS:
        sums += tl.load(bias + token * bias_step, mask=known, other=0.0).to(tl.float32)[None, :]
    return tl.where(known[None, :], sums, float("-inf"))
