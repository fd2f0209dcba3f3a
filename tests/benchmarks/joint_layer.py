"""Students that say differently how the tokens of one jump hang together; what `joint.py` trains, samples and compares.

    factorised  the package's student: given x_t, every token that jumps is drawn by itself.
    joint       the same with one causal block more on top of the trunk, which is told the tokens drawn before, in reading order:
                q(x_1 .. x_M | x_t) = prod_k q(x_k | x_t, x_1 .. x_{k-1}), which any joint law can be.
    added       such a block on top of the teacher, which stays as it is.

The block's input at the k-th of M positions that jump together is the trunk's state there, plus an embedding of the token that was
written at the (k-1)-th (zero at the first); what it gives is added to the trunk's state before the head, through a matrix that
is zero at first: so all begin as one and the same student, the teacher. The trunk runs once a jump in all of them.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsdfm.kernels.linear_logprob import linear_logprob
from tsdfm.kernels.sample_rows import sample_rows
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise, Use
from tsdfm.pipeline.flow.rings.clocks import clocks_of, draw_rings
from tsdfm.pipeline.flow.rollout import draw_source
from tsdfm.pipeline.loader.windows import Batch
from tsdfm.pipeline.models.causal import CausalBlock
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.layers import LayerNorm, Linear, rotary
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.model import CausalConfig

Past = tuple[Tensor, Tensor]  # keys and values [B, H, P, d] of the P positions before


@dataclass(frozen=True)
class Together:
    """Which positions of B texts jump together: positions [B, M] int64, in reading order; there [B, M] bool, whether there is one.

    Rows [R] are those of all positions, text by text. M is the largest number that a text has.
    """

    positions: Tensor
    there: Tensor

    @classmethod
    def of(cls, where: Tensor) -> "Together":
        """Those of where [B, L] bool."""
        number = where.sum(1)
        there = torch.arange(int(number.max()), device=where.device) < number[:, None]
        positions = torch.zeros(there.shape, dtype=torch.long, device=where.device)
        positions[there] = where.nonzero()[:, 1]
        return cls(positions, there)

    def packed(self, rows: Tensor) -> Tensor:
        """Rows [R, ...] text by text, [B, M, ...]; 0 where there is no position."""
        out = rows.new_zeros((*self.there.shape, *rows.shape[1:]))
        out[self.there] = rows
        return out


class JointLayer(nn.Module):
    """A causal block over the positions that jump together; its embeddings of tokens begin as those of the student's trunk."""

    def __init__(self, student: Denoiser) -> None:
        super().__init__()
        config = student.config
        dim, self.nothing, self.length = config.hidden_size, config.vocab_size, config.length
        self.tokens = nn.Embedding(config.vocab_size + 1, dim, padding_idx=self.nothing)
        with torch.no_grad():
            self.tokens.weight[: self.nothing] = student.trunk.vocab_embed.weight
        self.of_hidden, self.of_token, self.norm = LayerNorm(dim), LayerNorm(dim), LayerNorm(dim)
        self.block = CausalBlock(CausalConfig(
            hidden_size=dim, n_blocks=1, n_heads=config.n_heads, mlp_ratio=config.mlp_ratio, dropout=config.dropout,
            vocab_size=config.vocab_size, length=config.length))
        self.out = Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, hidden: Tensor, previous: Tensor, positions: Tensor, past: Past | None = None) -> tuple[Tensor, Past]:
        """States for the head, and keys and values of all positions so far.

        hidden [B, M, D]: the trunk's states; previous [B, M] int64: the token before each, or `nothing`; positions [B, M].
        """
        x = self.of_hidden(hidden) + self.of_token(self.tokens(previous))
        tables = rotary(self.length, x.shape[-1] // self.block.n_heads, x.device)
        cos, sin = (table[positions][:, None] for table in tables)  # [B, 1, M, d]
        x, keys, values = self.block(x, cos, sin, past)
        return hidden + self.out(self.norm(x)), (keys, values)


class Factorised(nn.Module):
    """A student as the package has it."""

    def __init__(self, student: Denoiser) -> None:
        super().__init__()
        self.student = student

    @property
    def fitted(self) -> nn.Module:
        """What a training changes."""
        return self

    def seen(self, hidden: Tensor, together: Together, tokens: Tensor) -> Tensor:
        """The states [R, D] that the head is given, of the trunk's [R, D] and the tokens [R] that are written."""
        return hidden

    def nats(self, batch: Batch) -> Tensor:
        """Nats of every target, [R]: those of `StudentLoss` 'event' of a factorised student."""
        where = batch.target >= 0
        tokens, head, mask_id = batch.target[where], self.student.head, self.student.config.mask_id
        hidden = self.student.hidden_where(where, batch.x_t, batch.t, batch.dt)
        bias: Tensor = head.bias
        if mask_id is not None:
            bias = bias.index_fill(0, torch.tensor(mask_id), -torch.inf)
        return -linear_logprob(self.seen(hidden, Together.of(where), tokens), head.weight, bias, tokens)

    def draw(self, hidden: Tensor, together: Together, uniforms: Tensor, temperature: float) -> Tensor:
        """Tokens [R] of the positions that jump, from the trunk's states [R, D] and uniforms [R]."""
        return self.drawn(hidden, uniforms, temperature)

    def drawn(self, hidden: Tensor, uniforms: Tensor, temperature: float) -> Tensor:
        """Tokens [R] from what the head is given, [R, D]."""
        head = self.student.head
        return sample_rows(hidden, head.weight, head.bias, uniforms[:, None], temperature=temperature,
                           excluded=self.student.config.mask_id).tokens[:, 0]


class Joint(Factorised):
    """A student with one block more, which is told the tokens before."""

    def __init__(self, student: Denoiser) -> None:
        super().__init__(student)
        self.layer = JointLayer(student)

    def seen(self, hidden: Tensor, together: Together, tokens: Tensor) -> Tensor:
        """See `Factorised.seen`."""
        previous = F.pad(together.packed(tokens)[:, :-1], (1, 0), value=self.layer.nothing)
        states: Tensor = self.layer(together.packed(hidden), previous, together.positions)[0]
        return states[together.there]

    def draw(self, hidden: Tensor, together: Together, uniforms: Tensor, temperature: float) -> Tensor:
        """See `Factorised.draw`: one position after another, each given those before; the block keeps its keys and values."""
        states, numbers = together.packed(hidden), together.packed(uniforms)
        tokens, past = torch.zeros_like(together.positions), None
        previous = torch.full_like(together.positions[:, :1], self.layer.nothing)
        for k in range(together.positions.shape[1]):
            one = slice(k, k + 1)
            seen, past = self.layer(states[:, one], previous, together.positions[:, one], past)
            tokens[:, k] = self.drawn(seen[:, 0], numbers[:, k], temperature)
            previous = tokens[:, one]
        return tokens[together.there]


class Added(Joint):
    """As `Joint`, but that the trunk and its head stay as they are, and the block alone is fitted."""

    def __init__(self, student: Denoiser) -> None:
        super().__init__(student)
        student.requires_grad_(False)

    @property
    def fitted(self) -> nn.Module:
        """See `Factorised.fitted`."""
        return self.layer


@torch.no_grad()
def write(side: Factorised, rollout: RolloutConfig, ids: range) -> Tensor:
    """Texts `ids` of a student, [B, L] int64: by the clocks, grid and noise of the package's own sampler, the trunk once a step."""
    student = side.student
    path, noise = MixturePath.of(student.config), Noise(rollout.seed, torch.tensor(list(ids)), Use.MEASURE)
    state = draw_source(path, noise, student.config.length)
    rings = draw_rings(path, noise, rollout.times, student.config.length, clocks_of(rollout, student.config))
    for step, where in enumerate(rings.unbind(1)):
        if not where.any():
            continue
        t, dt = (torch.full((len(ids),), value) for value in (rollout.times[step], 1 / rollout.steps))
        owner, positions = where.nonzero(as_tuple=True)
        hidden = student.hidden_where(where, state, t, dt)
        uniforms = noise.tokens(owner, torch.full_like(owner, step), positions, 1)[:, 0]
        state = state.clone()
        state[where] = side.draw(hidden, Together.of(where), uniforms, rollout.temperature)
    return state
