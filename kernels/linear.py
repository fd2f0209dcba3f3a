"""`linear`: x @ weight^T + bias, on CPUs through oneDNN.

Replaces `F.linear(x, weight, bias)`. For float32 on a CPU, torch's own product is MKL's, which on AMD processors does without
AVX-512; oneDNN, which ships with torch, uses it, at the same precision.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The affine map x @ weight^T + bias: x [..., D], weight [V, D], bias [V] or None, of one dtype -> [..., V] in it.

    Differentiable. Any device and dtype; oneDNN takes float32 on CPUs. Raises RuntimeError, torch's own, for shapes or dtypes
    that don't fit together.
    """
    if not _by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        out: Tensor = _OneDnnLinear.apply(x, weight, bias)  # type: ignore[no-untyped-call]
        return out
    return _product(x, weight, bias)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU, in its tanh form, of x @ weight^T + bias; shapes, dtypes and errors as of `linear`; differentiable.

    Without a gradient, oneDNN applies it while a block of the product is still in cache.
    """
    if _by_onednn(x, weight) and not torch.is_grad_enabled():
        return _product(x, weight, bias, "gelu", "tanh")
    return F.gelu(linear(x, weight, bias), approximate="tanh")


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():  # the compiler chooses the product itself
        return False
    return (x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.numel() > 0
            and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none", form: str = "") -> Tensor:
    bias = None if bias is None else bias.contiguous()  # its strides would not be looked at
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], form)
    return out


class _OneDnnLinear(torch.autograd.Function):
    """The product and its two gradients, all three by oneDNN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # flat: [rows, V] and [rows, D]
        flat, rows = grad_out.flatten(0, -2), x.flatten(0, -2)
        grad_x = _product(flat, weight.t(), None).view_as(x) if ctx.needs_input_grad[0] else None
        grad_weight = _outer(flat, rows) if ctx.needs_input_grad[1] else None
        return grad_x, grad_weight, flat.sum(0) if ctx.needs_input_grad[2] else None


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """left^T @ right: [R, a] and [R, b] -> [a, b]. Of two transposed factors oneDNN copies the first: here, the smaller."""
    if left.shape[1] <= right.shape[1]:
        return _product(left.t(), right.t(), None)
    return _product(right.t(), left.t(), None).t()
