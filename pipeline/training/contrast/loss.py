"""Noise-contrastive estimation of an energy: real text's states against the teacher's, at the same time t.

**States.** A text x_1 is noised to time t along the path, and stands against a state of a blind rollout of the teacher at that
time. The optimum of the binary cross entropy is the logit log p_data,t(x) - log p_teacher,t(x) (Gutmann & Hyvarinen 2010).
With the mask source both have the same positions masked, those of the rollout, whose law is the path's: then nothing but their
tokens tells them apart. (A state of the uniform source does not show which of its tokens are noise; the text's are drawn anew.)

**Candidates.** What a compass is asked for is a choice among a teacher's draws for the positions that jump together. So a
text's state may also be ranked among K *hard negatives*. It is taken as reached by a jump, in which some of its written
positions rang. The teacher is asked for these, given the state before, and its draws stand in the place of the text's own
tokens. With logits f of the K + 1 states, the text's at index 0, the loss is

    -log softmax(f)_0,

whose optimum is f = log p_data(tokens | state before) - log prod_i p_teacher(token i | state before), but for what all K + 1
share: what independent draws miss of the text's law (the residual energy of EDLM, arXiv 2410.21357). Jumps are of 1, 2, 4, ...
steps of the rollouts' grid, all alike often, so that one compass serves any number of steps up to theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tsdfm.kernels.sample_rows import sample_rows
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.ends.written import padded_state
from tsdfm.pipeline.training.losses import TextLoss, TextRows


@dataclass(frozen=True)
class JumpRows:
    """The jumps by which texts' states were reached: state before [B, L] int64 at time t [B], rings [B, L] bool, and the
    uniforms [B, L, K] float64 by which the teacher draws there.
    """

    before: Tensor
    t: Tensor
    rings: Tensor
    uniforms: Tensor


@dataclass(frozen=True)
class ContrastRows(TextRows):
    """Texts' states x_t at times t beside the teacher's (`tokens`), and how they were reached where candidates are drawn."""

    jump: JumpRows | None = None

    def _each(self, change: Callable[[Tensor], Tensor]) -> "ContrastRows":
        x_t, t = self.noised()
        jump = self.jump
        if jump is not None:
            jump = JumpRows(change(jump.before), change(jump.t), change(jump.rings), change(jump.uniforms))
        return ContrastRows(change(self.tokens), change(x_t), change(t), jump)


class Candidates:
    """Draws hard negatives: what a teacher, in eval mode and on its device, would have written in the jump to a text's state.

    `count`: K draws for each.
    """

    def __init__(self, teacher: Denoiser, count: int) -> None:
        self.teacher, self.count = teacher, count

    @torch.no_grad()
    def states(self, x_t: Tensor, t: Tensor, jump: JumpRows) -> Tensor:
        """States x_t [B, L] at times t [B] with the teacher's draws at the positions that rang: [B, K, L] int64."""
        config, head = self.teacher.config, self.teacher.head
        states = x_t[:, None].repeat(1, self.count, 1)
        row, position = jump.rings.nonzero(as_tuple=True)
        if len(row):
            hidden = self.teacher.hidden_where(jump.rings, jump.before, jump.t, t - jump.t)
            drawn = sample_rows(hidden.to(head.weight.dtype), head.weight, head.bias, jump.uniforms[row, position],
                                excluded=config.mask_id)
            states[row, :, position] = drawn.tokens
        return padded_state(states, config.end_id, config.mask_id)


class NoiseContrast(TextLoss):
    """Nats of every text: of telling its state from the teacher's, and of ranking it among candidates where these are drawn.

    Args:
        model: the encoder whose logit tells them apart.
        states: every state of R teacher rollouts of N steps, [R, N, L]; entry [r, s] is at time (s + 1)/N.
        candidates: draws hard negatives; None: there are none.
    """

    def __init__(self, model: NceEncoder, states: Tensor, candidates: Candidates | None = None) -> None:
        super().__init__()
        self.model, self.states, self.candidates = model, states, candidates
        self.path = MixturePath.of(model.config.trunk)

    def draw(self, x_1: Tensor, generator: torch.Generator) -> ContrastRows:
        """Pairs of a text's state and a teacher's, at the time of a step drawn uniformly: x_t and, as tokens, the teacher's."""
        return self.pair(x_1, torch.randint(self.states.shape[1], (len(x_1),), generator=generator), generator)

    def pair(self, x_1: Tensor, steps: Tensor, generator: torch.Generator) -> ContrastRows:
        """Texts x_1 [B, L], noised to the times of steps [B], beside states of a rollout drawn for each."""
        rollout = torch.randint(len(self.states), (len(x_1),), generator=generator)
        noise, t = self.states[rollout, steps].long(), self._time(steps + 1)
        if self.candidates is None:
            return ContrastRows(noise, self._noised(x_1, noise, t, generator), t)
        begin = steps + 1 - self._sizes(steps + 1, generator)
        real, jump = self._jump(x_1, noise, self._time(begin), t, generator)
        return ContrastRows(noise, real, t, jump)

    def _time(self, steps: Tensor) -> Tensor:
        return steps.float() / self.states.shape[1]

    def _noised(self, x_1: Tensor, noise: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        if self.path.mask_id is None:
            return self.path.sample(x_1, t, generator)
        return torch.where(noise == self.path.mask_id, noise, x_1)

    @staticmethod
    def _sizes(most: Tensor, generator: torch.Generator) -> Tensor:
        """A power of two up to each of `most` [B] >= 1, all of these alike: [B] int64."""
        powers = most.double().log2().floor().long() + 1
        return 1 << (torch.rand(len(most), generator=generator, dtype=torch.float64) * powers).long()

    def _jump(
        self, x_1: Tensor, noise: Tensor, t: Tensor, t_next: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, JumpRows]:
        """Texts' states at t_next, and the jumps from t by which they were reached."""
        assert self.candidates is not None
        u = torch.rand(x_1.shape, generator=generator, dtype=torch.float64)
        uniforms = torch.rand(*x_1.shape, self.candidates.count, generator=generator, dtype=torch.float64)
        if self.path.mask_id is None:
            before = self.path.sample(x_1, t, generator)
            rings = u < self.path.ring_probability(t, t_next)[:, None]
            return torch.where(rings, x_1, before), JumpRows(before, t, rings, uniforms)
        real = self._noised(x_1, noise, t_next, generator)
        # Of what is written at t_next, each position was by t with probability kappa_t / kappa_t_next, by itself.
        rings = (real != self.path.mask_id) & (u >= (self.path.kappa(t) / self.path.kappa(t_next))[:, None])
        return real, JumpRows(real.masked_fill(rings, self.path.mask_id), t, rings, uniforms)

    def count(self, rows: TextRows) -> int:
        """Pairs."""
        return len(rows)

    def forward(self, rows: TextRows) -> Tensor:
        """Nats of every pair, [B] float32."""
        real, t = rows.noised()
        logits: Tensor = self.model(real, t)
        nats = nce(logits, self.model(rows.tokens, t))
        if self.candidates is None:
            return nats
        assert isinstance(rows, ContrastRows)
        assert rows.jump is not None
        drawn = self.candidates.states(real, t, rows.jump)
        theirs: Tensor = self.model(drawn.flatten(0, 1), t.repeat_interleave(drawn.shape[1]))
        return nats + ranked(logits, theirs.view(drawn.shape[:2]))


def nce(real: Tensor, noise: Tensor) -> Tensor:
    """Binary cross entropy of pairs, given the logits of real states and of noise, [B] each -> [B] nats."""
    return F.softplus(-real) + F.softplus(noise)


def ranked(real: Tensor, drawn: Tensor) -> Tensor:
    """Nats of finding each real state among K drawn ones, by their logits [B] and [B, K] -> [B]."""
    return torch.cat([real[:, None], drawn], 1).logsumexp(1) - real
