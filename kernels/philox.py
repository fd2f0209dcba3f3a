"""Philox4x32-10, the counter-based generator behind every random number of generation.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). A 128-bit counter and a 64-bit key
give four 32-bit words; nothing is stateful, so any number can be drawn anywhere, in any order, on any worker.
Words are held in int64 tensors, for torch has no full uint32 arithmetic; all values lie in [0, 2^32).
Every backend gives the same bits: the torch form below, and on CUDA the kernel of `philox_triton`.
"""

import torch
from torch import Tensor

from tsdfm.kernels.dispatch import backend

_MULTIPLIER_0, _MULTIPLIER_1 = 0xD2511F53, 0xCD9E8D57
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
ROUNDS = 10


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of the 64-bit product; the 16-bit split keeps every partial product below 2^49."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    carried = high + (low >> 16)
    return carried >> 16, (low + (high << 16)) & _WORD


def philox4x32(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four random words of each key and counter, in [0, 2^32), by ten rounds: int64, in the shape of all six words broadcast.

    key: two words, counter: four, int64 tensors in [0, 2^32) on one device; their ranges are not checked. Raises RuntimeError,
    torch's own, for shapes that cannot be broadcast.
    """
    if backend(counter[0]) == "triton":
        from tsdfm.kernels import philox_triton

        return philox_triton.words(key, counter)
    return _words(key, counter)


def _words(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    k0, k1 = key
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    for _ in range(ROUNDS):
        high0, low0 = _multiply(_MULTIPLIER_0, c0)
        high1, low1 = _multiply(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL_0) & _WORD, (k1 + _WEYL_1) & _WORD
    return c0, c1, c2, c3


def uniform(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Uniform numbers in [0, 1), float64 of 53 random bits, in the shape of all six words broadcast.

    key: two words, counter: four, int64 tensors in [0, 2^32) on one device; errors as of `philox4x32`, whose first two words
    give the bits.
    """
    if backend(counter[0]) == "triton":
        from tsdfm.kernels import philox_triton

        return philox_triton.uniform(key, counter)
    return uniform_torch(key, counter)


def uniform_torch(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """`uniform` by its torch form, on any device; arguments, values and errors as of it."""
    w0, w1, _, _ = _words(key, counter)
    return ((w0 >> 5) * 67108864 + (w1 >> 6)).double() * 2.0**-53
