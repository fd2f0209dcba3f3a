"""The shapes of the Triton kernels' work, by a fixed table: nothing is tuned at run time, so a thousand workers start alike.

An entry holds for chips of a compute capability and up (80: A100, 90: H100; capability 0 is the default that any chip can
hold), for elements of so many bytes, and for models up to a width. All entries for 80 and up compile without spills, within
shared memory, and with tensor cores: `python tests/kernels/aot.py` prints the figures, the tests check them. None has been
timed on a GPU: the entries are as large as registers allow without spilling, since a larger tile reads the weight less often.

Compiled kernels are cached in TRITON_CACHE_DIR (Triton's own variable; ~/.triton/cache if unset): put it on a disk that a
node's workers share, and only the first of them compiles, a second or two a kernel.
"""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

TOKENS = 128  # of the vocabulary, in every tile: also a block of the cumulative distribution in `sample_rows`
PROCESSORS_IN_INTERPRETER = 3  # what the interpreter pretends to have, so that its tests split the vocabulary, too


class Tile(NamedTuple):
    """The shape of one program's product: `rows` x TOKENS, `depth` of the model's width at a time."""

    rows: int
    depth: int
    warps: int
    stages: int


class Entry(NamedTuple):
    """A tile, and what it is for."""

    capability: int  # at least
    itemsize: int  # bytes of an element of hidden and weight, at most
    width: int  # of the model, at most
    rows: int  # of the problem, at most
    tile: Tile


_ANY = 1 << 31

# The first entry that fits is taken.
TABLE = (
    Entry(80, 2, 64, 16, Tile(16, 64, 4, 1)),
    Entry(80, 2, 64, _ANY, Tile(64, 64, 8, 1)),
    Entry(80, 2, _ANY, 16, Tile(16, 128, 4, 3)),
    Entry(80, 2, _ANY, 64, Tile(64, 64, 8, 3)),
    Entry(80, 2, _ANY, _ANY, Tile(128, 64, 16, 3)),
    Entry(80, 4, _ANY, 16, Tile(16, 32, 8, 3)),
    Entry(90, 4, _ANY, _ANY, Tile(64, 32, 8, 3)),
    Entry(80, 4, _ANY, _ANY, Tile(64, 16, 8, 3)),
    Entry(0, 4, _ANY, 16, Tile(16, 32, 8, 2)),
    Entry(0, 4, _ANY, _ANY, Tile(64, 16, 8, 2)),
)


def tile_for(rows: int, hidden: Tensor) -> Tile:
    """The tile for a problem of so many rows, with hidden states [_, D] like these, on their device.

    Raises ValueError for elements of 8 bytes.
    """
    return lookup(_capability(hidden), hidden.element_size(), hidden.shape[1], rows)


def lookup(capability: int, itemsize: int, width: int, rows: int) -> Tile:
    """The tile of the first entry of the table that fits a chip, an element's bytes, a model's width and a number of rows.

    Raises ValueError for elements of more than 4 bytes.
    """
    for entry in TABLE:
        if capability >= entry.capability and itemsize <= entry.itemsize and width <= entry.width and rows <= entry.rows:
            return entry.tile
    raise ValueError(f"the kernels take elements of 2 or 4 bytes, not {itemsize}; float64 is for TSDFM_KERNELS=torch")


def processors(tensor: Tensor) -> int:
    """The number of streaming multiprocessors of the tensor's device; `PROCESSORS_IN_INTERPRETER` on a CPU."""
    if not tensor.is_cuda:
        return PROCESSORS_IN_INTERPRETER
    return int(torch.cuda.get_device_properties(tensor.device).multi_processor_count)


def widened(tensor: Tensor) -> bool:
    """Whether the kernel must widen its inputs itself: Triton's interpreter multiplies bfloat16 as if they were integers."""
    return bool(triton.knobs.runtime.interpret) and tensor.dtype == torch.bfloat16


def _capability(tensor: Tensor) -> int:
    if not tensor.is_cuda:
        return 0
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor
