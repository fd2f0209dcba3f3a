"""A small causal language model over the teacher's vocabulary, with a key-value cache.

It serves as the `ar` compass and, fitted on the other half of a corpus, as an independent judge; two of them are the `contrast`
compass. Pre-norm blocks, rotary attention, no time conditioning; the head is tied to the embedding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsdfm.kernels.linear import linear
from tsdfm.pipeline.models.layers import MLP, LayerNorm, Linear, Recomputable, merge_heads, rotary, rotate, split_heads
from tsdfm.schemas.model import CausalConfig, ContrastConfig


@dataclass(frozen=True)
class Cache:
    """Rotated keys and values of every block, each [B, H, L, d]."""

    keys: list[Tensor]
    values: list[Tensor]

    def prefix(self, rows: Tensor, length: int) -> "Cache":
        """The first `length` positions of the chosen batch rows (indices [R])."""
        return Cache([k[rows, :, :length] for k in self.keys], [v[rows, :, :length] for v in self.values])


class CausalBlock(Recomputable):
    """Pre-norm attention and MLP."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.norm1, self.norm2 = LayerNorm(dim), LayerNorm(dim)
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.attn_out = Linear(dim, dim, bias=False)
        self.mlp = MLP(dim, config.mlp_ratio)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, M, D] at the last M positions; past keys and values [B, H, P, d] -> (x, keys, values of all P + M)."""
        q, k, v = (split_heads(part, self.n_heads) for part in self.qkv(self.norm1(x)).chunk(3, -1))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is None:
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
            new, total = q.shape[2], k.shape[2]
            # visible: [M, P + M]; query m sees all of the past and the new positions up to itself.
            visible = torch.ones(new, total, dtype=torch.bool, device=x.device).tril(total - new)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        x = x + F.dropout(self.attn_out(merge_heads(attended)), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.norm2(x)), self.dropout, self.training), k, v


class CausalLM(nn.Module):
    """p(x^i | x^{<i}); the first token is predicted from `bos_id`."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.n_heads
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.blocks = nn.ModuleList(CausalBlock(config) for _ in range(config.n_blocks))
        self.norm_final = LayerNorm(config.hidden_size)

    @property
    def head_weight(self) -> Tensor:
        """The weight of the vocabulary head [V, D], tied to the embedding."""
        return self.embed.weight

    def inputs(self, tokens: Tensor) -> Tensor:
        """Shift right: [B, L] -> [B, L] starting with `bos_id`, so that position i predicts tokens[:, i]."""
        return F.pad(tokens[:, :-1], (1, 0), value=self.config.bos_id)

    def hidden(self, inputs: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """Shifted inputs [B, M] that follow `past` (P positions) -> hidden [B, M, D] and the cache of all P + M."""
        start = 0 if past is None else past.keys[0].shape[2]
        cos, sin = rotary(start + inputs.shape[1], self.head_dim, inputs.device)
        x, cache = self.embed(inputs), Cache([], [])
        for index, block in enumerate(self.blocks):
            block_past = None if past is None else (past.keys[index], past.values[index])
            x, keys, values = block(x, cos[start:], sin[start:], block_past)
            cache.keys.append(keys)
            cache.values.append(values)
        return self.norm_final(x), cache

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, L, V] of each token given those before it: for training and tests."""
        return linear(self.hidden(self.inputs(tokens))[0], self.head_weight)


class ContrastLM(nn.Module):
    """Two causal language models: of text, and of a teacher's texts. Each is asked by itself."""

    def __init__(self, config: ContrastConfig) -> None:
        super().__init__()
        self.config = config
        self.text, self.teachers = CausalLM(config.each), CausalLM(config.each)
