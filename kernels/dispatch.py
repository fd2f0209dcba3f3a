"""What the kernels share: which implementation runs (Triton on CUDA, blocked torch elsewhere, or what `TSDFM_KERNELS` says),
and the check of their inputs.

Modules named `*_triton` are imported inside the functions that call them, for triton need not be installed. They import none
of the modules that dispatch to them; what both sides need lies in `buckets` and `row_blocks`.
"""

import os
from typing import Literal, cast

import torch
from torch import Tensor

from tsdfm.schemas.base import InputError

BACKENDS = ("reference", "torch", "triton")


def accumulator(hidden: Tensor) -> torch.dtype:
    """The dtype in which logits are computed and results are given: float32, or float64 for float64 hidden states."""
    return torch.promote_types(hidden.dtype, torch.float32)


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """A check of the head's inputs: hidden [N, D], weight [V, D] of its dtype, bias [V] in any dtype, or None.

    Raises ValueError, with the shapes or dtypes found, where they do not fit together.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [N, D] and [V, D]")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: they must be of one dtype")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must be [{len(weight)}], one per row of weight")


def backend(tensor: Tensor) -> Literal["reference", "torch", "triton"]:
    """The implementation for inputs like `tensor`: "triton" on a GPU and "torch" elsewhere, or what TSDFM_KERNELS says.

    The environment is read at each call. Raises InputError for a TSDFM_KERNELS that names no implementation, and for "triton"
    without a GPU, unless TRITON_INTERPRET asks for Triton's interpreter.
    """
    forced = os.environ.get("TSDFM_KERNELS", "")
    if not forced:
        return "triton" if tensor.is_cuda else "torch"
    if forced not in BACKENDS:
        raise InputError(f"TSDFM_KERNELS={forced}: no such implementation; unset it, or set it to one of {', '.join(BACKENDS)}")
    if forced == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET", "") in ("", "0"):
        raise InputError("TSDFM_KERNELS=triton: there is no GPU here for the kernels; unset it, or set TRITON_INTERPRET=1 to "
                         "interpret them, slowly")
    return cast(Literal["reference", "torch", "triton"], forced)
