"""What `sample_rows` and its Triton kernels hand to each other: the logits of r rows, a block of the vocabulary at a time."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

CDF_BLOCK = 128  # tokens per first-level block of the cumulative distribution


@dataclass(frozen=True)
class Blocks:
    """The largest logit and the mass of each of B = ceil(V / CDF_BLOCK) blocks of r rows, and a way to the logits of some."""

    maxima: Tensor  # [r, B] float32, tempered logits; -inf where no token has mass
    masses: Tensor  # [r, B] float32 or float64: sums of exp(logit - maximum of the row)
    gather_blocks: Callable[[Tensor], Tensor]  # block numbers [r, H] int64 -> logits [r, H, CDF_BLOCK] float32, -inf beyond V
