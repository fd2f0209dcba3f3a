"""Transformer parts that the denoiser and the causal models share."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tsdfm.kernels.linear import linear, linear_gelu

ROTARY_BASE = 10_000.0
FREQUENCIES = 256  # width of the sinusoidal time features
MAX_PERIOD = 10_000.0


class Recomputable(nn.Module):
    """A block that can forget what its forward pass computed, and compute it again when the gradient is taken.

    It saves the memory of a block's inner activations for a third more work, and changes no value.
    """

    recompute = False

    def __call__(self, *inputs: Any) -> Any:
        """The forward pass."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *inputs, use_reentrant=False)
        return super().__call__(*inputs)


def recompute_blocks(network: nn.Module) -> None:
    """Have every block of a network computed twice, in the forward pass and when the gradient is taken: less memory."""
    for block in network.modules():
        if isinstance(block, Recomputable):
            block.recompute = True


def compile_blocks(network: nn.Module, dynamic: bool | None = None) -> None:
    """Have every block of a network compiled by torch at its first call, which takes a while; its last bits may change.

    `dynamic`: whether for inputs of any size, rather than for each anew; None: torch finds out.
    """
    for block in network.modules():
        if isinstance(block, Recomputable):
            block.compile(dynamic=dynamic)


class LayerNorm(nn.Module):
    """Layer normalisation with a gain and no bias, in float32 whatever the input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised features, in the dtype of x: [..., D] -> [..., D]."""
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float()).to(x.dtype)


def sinusoids(values: Tensor) -> Tensor:
    """Cosines and sines of values [B] at geometrically falling frequencies: [B, FREQUENCIES]."""
    half = FREQUENCIES // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) * torch.arange(half, device=values.device).float() / half)
    angles = values[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


class StepEmbedding(nn.Module):
    """Sinusoidal features of a step size dt, by log2(1/dt), through a two-layer MLP whose output starts at zero."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        first, last = nn.Linear(FREQUENCIES, cond_dim), nn.Linear(cond_dim, cond_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(first, nn.SiLU(), last)

    def forward(self, dt: Tensor) -> Tensor:
        """Features of the step sizes dt [B], in (0, 1] -> [B, cond_dim]."""
        out: Tensor = self.mlp(sinusoids(-dt.float().log2()).to(next(self.mlp.parameters()).dtype))
        return out


def rotary(length: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rotary tables cos and sin, [length, head_dim] float32 each, GPT-NeoX halves (Su et al. 2021, arXiv 2104.09864)."""
    inverse = ROTARY_BASE ** (-torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angles = torch.outer(torch.arange(length, device=device).float(), inverse)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x [B, H, L, d] by the angles of its positions; cos, sin [L, d]."""
    low, high = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat([-high, low], -1) * sin.to(x.dtype)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """Heads apart: [B, L, H d] -> [B, H, L, d], a view."""
    batch, length, width = x.shape
    return x.view(batch, length, n_heads, width // n_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """Heads side by side again: [B, H, L, d] -> [B, L, H d]."""
    return x.transpose(1, 2).flatten(2)


class Linear(nn.Linear):
    """nn.Linear by the product of kernels/linear.py."""

    def forward(self, x: Tensor) -> Tensor:
        """The product and bias of x [..., in] -> [..., out]."""
        return linear(x, self.weight, self.bias)


class MLP(nn.Sequential):
    """Linear, GELU (tanh form), Linear; biases on both."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__(Linear(dim, ratio * dim), nn.GELU(approximate="tanh"), Linear(ratio * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """Features after both layers: [..., D] -> [..., D]."""
        up, down = cast(nn.Linear, self[0]), cast(nn.Linear, self[2])
        return linear(linear_gelu(x, up.weight, up.bias), down.weight, down.bias)
