"""What the kernels share: which implementation runs (Triton on CUDA, blocked torch elsewhere, or what `TSDFM_KERNELS` says),
and the check of their inputs."""

import os
from typing import Literal, cast

import torch
from torch import Tensor

from tsdfm.schemas.base import InputError

BACKENDS = ("reference", "torch", "triton")


def accumulator(hidden: Tensor) -> torch.dtype:
    """The dtype in which logits are computed and results are given: at least float32."""
    return torch.promote_types(hidden.dtype, torch.float32)


def check_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raises ValueError unless hidden [N, D], weight [V, D] and bias [V] or None fit together and are of one dtype."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(f"hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be [N, D] and [V, D]")
    if hidden.dtype != weight.dtype:
        raise ValueError(f"hidden is {hidden.dtype} and weight {weight.dtype}: they must be of one dtype")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias {tuple(bias.shape)} must be [{len(weight)}], one per row of weight")


def backend(tensor: Tensor) -> Literal["reference", "torch", "triton"]:
    """The implementation for inputs like `tensor`; the environment is read at each call."""
    forced = os.environ.get("TSDFM_KERNELS", "")
    if not forced:
        return "triton" if tensor.is_cuda else "torch"
    if forced not in BACKENDS:
        raise InputError(f"TSDFM_KERNELS={forced}: no such implementation; unset it, or set it to one of {', '.join(BACKENDS)}")
    if forced == "triton" and not tensor.is_cuda and os.environ.get("TRITON_INTERPRET", "") in ("", "0"):
        raise InputError("TSDFM_KERNELS=triton: there is no GPU here for the kernels; unset it, or set TRITON_INTERPRET=1 to "
                         "interpret them, slowly")
    return cast(Literal["reference", "torch", "triton"], forced)
