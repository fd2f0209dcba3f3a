"""The denoiser p(x_1 | x_t, t), or of a student p(x | x_t, t, dt): a DiT with rotary attention and adaLN-zero conditioning.

The architecture is that of Peebles & Xie (2023, arXiv 2212.09748) as used for text by SEDD and by our predecessor FS-DFM
(arXiv 2509.20624), so that its checkpoints can be imported. The vocabulary head is kept apart from the trunk: callers
compute logits for the rows they need, never for all of [B, L, V].
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsdfm.kernels.linear import linear
from tsdfm.pipeline.models.layers import (
    FREQUENCIES,
    MLP,
    LayerNorm,
    Linear,
    Recomputable,
    StepEmbedding,
    merge_heads,
    rotary,
    rotate,
    sinusoids,
    split_heads,
)
from tsdfm.pipeline.models.masked import masked_trunk
from tsdfm.schemas.model import DenoiserConfig

SIGMA_EPSILON = 1e-3  # of MDLM's log-linear schedule: the share of tokens unmasked at its noisiest


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (1 + scale) + shift; x [B, L, D], shift and scale [B, 1, D]."""
    return x * (1 + scale) + shift


def at_places(x: Tensor, at: Tensor) -> Tensor:
    """Those of the features x [B, L, D] at places at [R] int64 in [0, B L): [R, D]."""
    return x.flatten(0, 1).index_select(0, at)


def of_rows(values: Tensor, at: Tensor, length: int) -> Tensor:
    """What each row of [B, length] has, values [B, D], for places at [R] int64 in it: [R, D]."""
    return values.index_select(0, at // length)


def sigma(t: Tensor, kappa_exponent: float) -> Tensor:
    """The noise level of MDLM and Duo at our time t, [B] in [0, 1] -> [B] float32.

    MDLM (Sahoo et al. 2024, arXiv 2406.07524) masks a token with probability 1 - exp(-sigma), the path with 1 - kappa_t: the
    same state has sigma = -log kappa_t = -n log t, whichever schedule sigma was trained with. Its log-linear schedule,
    sigma(s) = -log(1 - (1 - eps) s) for s from 0 to 1, stops at sigma = -log eps, and so do we: kappa is at least eps. Duo
    (arXiv 2506.10892) has the same schedule, and makes a token noise with the same probability.
    """
    return -(t.float() ** kappa_exponent).clamp_min(SIGMA_EPSILON).log()


class TimeEmbedding(nn.Module):
    """Sinusoidal features of a time in [0, 1] (or of another scalar), through a two-layer MLP."""

    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, t: Tensor) -> Tensor:
        """Features of the times t [B] -> [B, cond_dim]."""
        out: Tensor = self.mlp(sinusoids(t.float()).to(next(self.mlp.parameters()).dtype))
        return out


class FusedModulation(nn.Linear):
    """Modulation of FS-DFM's students (arXiv 2509.20624): the fused embedding of t and dt, mixed anew before it modulates."""

    def __init__(self, cond_dim: int, out: int) -> None:
        super().__init__(cond_dim, out)
        self.fuser = nn.Linear(2 * cond_dim, cond_dim)

    def forward(self, c: Tensor) -> Tensor:
        """Shifts, scales and gates of the embeddings of t and dt side by side: [B, 2 cond_dim] -> [B, out]."""
        return super().forward(F.silu(self.fuser(c)))


def modulation(config: DenoiserConfig, out: int) -> nn.Linear:
    """A layer from the conditioning to `out` shifts, scales and gates; its weights are zero at first."""
    layer = (FusedModulation if config.conditioning == "fused" else nn.Linear)(config.cond_dim, out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(Recomputable):
    """Attention and MLP, each shifted, scaled and gated by the time conditioning (gates start at zero)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.attn_out = Linear(dim, dim, bias=False)
        self.mlp = MLP(dim, config.mlp_ratio)
        self.modulation = modulation(config, 6 * dim)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, c: Tensor, at: Tensor | None = None) -> Tensor:
        """x [B, L, D], cos and sin [L, d], c [B, cond_dim] (fused: twice as wide) -> [B, L, D].

        With `at` [R] int64, places in [0, B L): the features of these places alone, [R, D]. Only keys and values are computed
        at the others.
        """
        modulation = self.modulation(c)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, None].chunk(6, -1)
        normed = modulate(self.norm1(x), shift1, scale1)
        qkv = self.qkv(normed).chunk(3, -1) if at is None else self._qkv_at(normed, at)
        q, k, v = (split_heads(part, self.n_heads) for part in qkv)
        attended = merge_heads(F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v))
        if at is not None:
            # [R, D] each from here on
            _, _, gate1, shift2, scale2, gate2 = of_rows(modulation, at, x.shape[1]).chunk(6, -1)
            x, attended = at_places(x, at), at_places(attended, at)
        x = x + gate1 * F.dropout(self.attn_out(attended), self.dropout, self.training)
        hidden = self.mlp(modulate(self.norm2(x), shift2, scale2))
        out: Tensor = x + gate2 * F.dropout(hidden, self.dropout, self.training)
        return out

    def _qkv_at(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the places `at`, zeros at the others, and all keys and values: [B, L, D] each."""
        dim = x.shape[-1]
        of_queries, of_others = self.qkv.weight.split([dim, 2 * dim])
        queries = linear(at_places(x, at), of_queries)
        k, v = linear(x, of_others).chunk(2, -1)
        q = queries.new_zeros(x.shape).flatten(0, 1).index_copy(0, at, queries).view_as(x)
        return q, k, v


class Trunk(nn.Module):
    """Everything below the vocabulary head: tokens and time to hidden states."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.head_dim = config.hidden_size // config.n_heads
        self.vocab_embed = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.vocab_embed.weight, std=0.02)
        self.time_embedding = TimeEmbedding(config.cond_dim)
        self.sigma_exponent = config.kappa_exponent if config.conditioning == "sigma" else None
        fused = config.conditioning == "fused"
        step_embedding = TimeEmbedding if fused else StepEmbedding
        self.step_embedding = step_embedding(config.cond_dim) if config.step_size else None
        self.fuser = nn.Linear(2 * config.cond_dim, 2 * config.cond_dim) if fused else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self.norm_final = LayerNorm(config.hidden_size)
        self.modulation = modulation(config, 2 * config.hidden_size)

    def condition(self, t: Tensor, dt: Tensor | None) -> Tensor:
        """t [B], dt [B] or None -> [B, cond_dim]; fused: [B, 2 cond_dim], where no step named is a step of 0."""
        c: Tensor = self.time_embedding(t if self.sigma_exponent is None else sigma(t, self.sigma_exponent))
        if self.fuser is not None and self.step_embedding is not None:
            step = self.step_embedding(torch.zeros_like(t) if dt is None else dt)
            return F.silu(self.fuser(torch.cat([c, step], -1)))
        if self.step_embedding is not None and dt is not None:
            c = c + self.step_embedding(dt)
        return F.silu(c)

    def forward(self, x_t: Tensor, t: Tensor, dt: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """x_t [B, L] int64, t [B] in [0, 1], dt [B] in (0, 1] -> hidden [B, L, D]; None: no step is named.

        With `at` [R] int64, places in [0, B L): hidden [R, D] of these places, which is all that the last block computes.
        """
        c = self.condition(t, dt).to(self.vocab_embed.weight.dtype)
        x = self.vocab_embed(x_t)
        cos, sin = rotary(x_t.shape[1], self.head_dim, x_t.device)
        for block in self.blocks[:-1]:
            x = block(x, cos, sin, c)
        x = self.blocks[-1](x, cos, sin, c) if at is None else self.blocks[-1](x, cos, sin, c, at)
        modulation = self.modulation(c)
        # shift, scale: [B, 1, D], with `at` [R, D]
        spread = modulation[:, None] if at is None else of_rows(modulation, at, x_t.shape[1])
        shift, scale = spread.chunk(2, -1)
        return modulate(self.norm_final(x), shift, scale)


def trunk_of(config: DenoiserConfig) -> Trunk:
    """The trunk of a config: our own; or, in its place, that of a masked language model, of which only the call is alike."""
    return Trunk(config) if config.masked_lm is None else cast(Trunk, masked_trunk(config, config.masked_lm))


class Denoiser(nn.Module):
    """Trunk and head. `head.weight` [V, D] and `head.bias` [V] feed the row-wise kernels directly."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = trunk_of(config)
        self.head = Linear(config.hidden_size, config.vocab_size)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def hidden(self, x_t: Tensor, t: Tensor, dt: Tensor | None = None) -> Tensor:
        """x_t [B, L] int64, t [B] -> hidden [B, L, D]; logits of a row are head(hidden row).

        dt [B]: the size of the jump that is about to be made; only a model with a step embedding looks at it.
        """
        out: Tensor = self.trunk(x_t, t, dt)
        return out

    def hidden_where(self, wanted: Tensor, x_t: Tensor, t: Tensor, dt: Tensor | None = None) -> Tensor:
        """`hidden` at the R positions where wanted [B, L] bool is true, in row-major order: [R, D].

        The values and gradients of `hidden(x_t, t, dt)[wanted]` up to floating-point error, with less work: the last block
        gives the other positions their keys and values alone. With dropout in training the two agree in law only.
        """
        at = wanted.flatten().nonzero()[:, 0]
        if len(at) == wanted.numel():  # nothing to leave out
            return self.hidden(x_t, t, dt).flatten(0, 1)
        out: Tensor = self.trunk(x_t, t, dt, at)
        return out

    def forward(self, x_t: Tensor, t: Tensor, dt: Tensor | None = None) -> Tensor:
        """All logits [B, L, V]: for tests and tiny vocabularies only."""
        out: Tensor = self.head(self.hidden(x_t, t, dt))
        return out
