"""Which implementation of a kernel runs: Triton on CUDA, blocked torch elsewhere, or what `TSDFM_KERNELS` says."""

import os
from typing import Literal, cast

from torch import Tensor

from tsdfm.schemas.base import InputError

BACKENDS = ("reference", "torch", "triton")


def backend(tensor: Tensor) -> Literal["reference", "torch", "triton"]:
    """The implementation for inputs like `tensor`; the environment is read at each call."""
    forced = os.environ.get("TSDFM_KERNELS", "")
    if not forced:
        return "triton" if tensor.is_cuda else "torch"
    if forced not in BACKENDS:
        raise InputError(f"TSDFM_KERNELS={forced}: no such implementation; unset it, or set it to one of {', '.join(BACKENDS)}")
    return cast(Literal["reference", "torch", "triton"], forced)
