"""One shaped jump: K candidate tokens for every ringing position, energies, and the choice of one candidate.

A model of padded texts writes nothing but end tokens behind an end. With the mask source an end that stands in the state stays,
so all that rings behind it is given the end token, whatever the model says, which is not asked for that in training. (A perfect
model would say the same.) With the uniform source an end in a state may be noise, and the model is asked.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsdfm.kernels.sample_rows import argmax_rows, sample_rows
from tsdfm.pipeline.flow.compass import Compass, complete, quantise, scored_length
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.visits import Ringing, places
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import behind_given, is_written
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@dataclass(frozen=True)
class StepState:
    """Where A trajectories of the batch stand: each at its own step, about to jump.

    rows [A]: indices into the batch; steps [A] int64; t, t_next [A] float64: the jump's start and end; state [A, L] int64;
    untouched [A, L] bool: positions that still hold their source token; shaped [A] bool; dt: 1/N, what a student is told;
    some_shaped: whether any is shaped, which nobody need ask the device; free [A, L] bool: positions that have a clock (None:
    all), of which a fixed one is not untouched.
    """

    rows: Tensor
    steps: Tensor
    t: Tensor
    t_next: Tensor
    state: Tensor
    untouched: Tensor
    shaped: Tensor
    dt: float
    some_shaped: bool
    free: Tensor | None = None

    @property
    def hidden_time(self) -> tuple[Tensor, Tensor]:
        """t and dt as a denoiser takes them, [A] float32 each."""
        return self.t.float(), torch.full_like(self.t, self.dt, dtype=torch.float32)


@dataclass(frozen=True)
class Jump:
    """The outcome for R ringing positions, row-major over (trajectory, position).

    next_state [A, L]; owner [R] (index into the step state), positions [R], tokens [R]; candidates [R, K];
    topk_ids and topk_logprobs [R, k]; energy [A, K] (NaN: not scored); choice [A] int64.
    """

    next_state: Tensor
    owner: Tensor
    positions: Tensor
    tokens: Tensor
    candidates: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    energy: Tensor
    choice: Tensor


@dataclass(frozen=True)
class _Candidates:
    """What the A trajectories of a step may become: K states each, which differ at the R ringing positions only."""

    clocks: Ringing
    tokens: Tensor  # [R, K] int64
    logprobs: Tensor  # [R, K] under the teacher
    states: Tensor  # [A, K, L] int64


def resampled(energy: Tensor, beta: float, u: Tensor) -> Tensor:
    """Candidates drawn with probability softmax(-beta E), by inversion: energy [A, K], u [A] in [0, 1) -> [A] int64."""
    weights = torch.softmax(-beta * energy.double(), 1).cumsum(1)
    return torch.searchsorted(weights, (u * weights[:, -1])[:, None], right=True)[:, 0].clamp_max(energy.shape[1] - 1)


class Shaper:
    """Draws candidates and chooses. `compass` None, or K = 1: every jump is blind."""

    def __init__(
        self, teacher: Denoiser, compass: Compass | None, rollout: RolloutConfig, shaping: ShapingConfig, noise: Noise
    ) -> None:
        self.teacher, self.compass, self.rollout, self.shaping, self.noise = teacher, compass, rollout, shaping, noise
        self.candidates = 1 if compass is None else shaping.candidates
        self.path = MixturePath.of(teacher.config)
        # Of every trajectory of the batch, whether all numbers of it were finite: 1 or 0; looked at once, at the end.
        self.finite = {
            who: torch.ones(len(noise.ids), dtype=torch.int32, device=noise.device) for who in ("teacher", "compass")}

    def advance(self, now: StepState, until: Tensor, hidden: Tensor, stage: int) -> StepState:
        """A solver's inner stage: jump from `now` to time `until` [A] with the posterior of `hidden`, shaped where `now` is."""
        probability = self.path.ring_probability(now.t, until)
        rings = self.noise.rings(now.rows, now.steps, now.state.shape[1], stage) < probability[:, None]
        if self.path.mask_id is not None:
            rings &= now.untouched
        if now.free is not None:
            rings &= now.free
        state = self.jump(replace(now, t_next=until), Ringing.of(rings), hidden, stage).next_state
        return replace(now, t=until, state=state, untouched=now.untouched & ~rings)

    def jump(self, now: StepState, clocks: Ringing, hidden: Tensor, stage: int = 0) -> Jump:
        """Redraw the ringing positions from the posterior of `hidden`.

        Args:
            now: A trajectories.
            clocks: those that ring.
            hidden: [A, L, D], whose head gives the posterior.
            stage: the solver's stage within the step; 0 for the step itself.
        """
        owner, positions = clocks.owner, clocks.positions
        head, mask_id = self.teacher.head, self.teacher.config.mask_id
        uniforms = self.noise.tokens(now.rows[owner], now.steps[owner], positions, self.candidates, stage)
        drawn = sample_rows(
            hidden[owner, positions], head.weight, head.bias, uniforms, temperature=self.rollout.temperature,
            excluded=mask_id, top_k=self.rollout.top_k if stage == 0 else 0,
        )
        self.note("teacher", now.rows[owner], drawn.logprobs)
        tokens, logprobs = self._padded(now, clocks, drawn.tokens, drawn.logprobs)
        # An unshaped step has one draw, candidate 0, that stands for all K.
        candidates = torch.where(now.shaped[owner, None], tokens, tokens[:, :1])
        # states: [A, K, L]
        states = now.state[:, None].repeat(1, self.candidates, 1)
        states[owner, :, positions] = candidates
        energy = self._energy(now, hidden, _Candidates(clocks, candidates, logprobs, states))
        choice = self._choose(now, energy, stage)
        picked = torch.arange(len(choice), device=choice.device)
        return Jump(
            states[picked, choice], owner, positions, candidates.gather(1, choice[owner, None])[:, 0], candidates,
            drawn.topk_ids, drawn.topk_logprobs, energy, choice,
        )

    def _padded(self, now: StepState, clocks: Ringing, tokens: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn tokens and their log-probabilities, [R, K] each, with the end token, which is certain, behind an end."""
        end_id, mask_id = self.teacher.config.end_id, self.teacher.config.mask_id
        if end_id is None or mask_id is None:
            return tokens, logprobs
        written = is_written(now.state, end_id, None if now.free is None else behind_given(now.free))
        behind = ~written[clocks.owner, clocks.positions][:, None]
        return tokens.masked_fill(behind, end_id), logprobs.masked_fill(behind, 0.0)

    def _energy(self, now: StepState, hidden: Tensor, drawn: _Candidates) -> Tensor:
        """[A, K] energies, NaN for trajectories that aren't shaped here or whose candidates all agree."""
        states, owner = drawn.states, drawn.clocks.owner
        energy = states.new_full(states.shape[:2], torch.nan, dtype=torch.float32)
        if self.compass is None or not now.some_shaped:
            return energy
        disagree = (drawn.tokens != drawn.tokens[:, :1]).any(1)
        scored = (torch.zeros(len(states), dtype=torch.int32, device=owner.device).index_add_(0, owner, disagree.int()) > 0)
        scored &= now.shaped
        unresolved = now.untouched & ~drawn.clocks.rings & scored[:, None]
        count, open_positions = torch.stack([scored.sum(), unresolved.sum()]).tolist()  # all that is read in a step
        if not count:
            return energy
        scored = places(scored, count)[:, 0]
        completion = None
        if self.compass.needs_completion:
            completion = self._completion(hidden, places(unresolved, open_positions))[scored]
        values = self.compass.energy(states[scored], now.t_next[scored], completion)
        if self.shaping.residual and self.compass.proposal_weight:
            size = torch.full(energy.shape[:1], states.shape[-1], device=energy.device)
            size[scored] = scored_length(complete(states[scored], completion), self.teacher.config.end_id)
            counted = (drawn.clocks.positions < size[owner])[:, None]
            proposal = torch.zeros(energy.shape, dtype=torch.float64, device=energy.device)
            proposal.index_add_(0, owner, drawn.logprobs.double().masked_fill(~counted, 0.0))
            values = values + self.compass.proposal_weight * (proposal / size[:, None])[scored].float()
        self.note("compass", now.rows[scored], values)
        energy[scored] = quantise(values)
        return energy

    def note(self, who: str, rows: Tensor, values: Tensor) -> None:
        """Remember of batch rows [R] whether their values [R, K] are finite."""
        self.finite[who].scatter_reduce_(0, rows, values.isfinite().all(1).int(), "amin")

    def check_finite(self) -> None:
        """Raises WorkError naming a trajectory whose logits or energies were not finite: what was drawn means nothing."""
        for who, finite in self.finite.items():
            broken = (finite == 0).nonzero()[:, 0]
            if len(broken):
                what = "log-probabilities of the teacher" if who == "teacher" else "energies of the compass"
                raise WorkError(f"trajectory {int(self.noise.ids[broken[0]])}: the {what} are not finite, in {len(broken)} of "
                                f"{len(finite)} trajectories; check the model's weights, or raise the temperature; nothing was "
                                "written for them")

    def _completion(self, hidden: Tensor, unresolved: Tensor) -> Tensor:
        """The teacher's argmax at U unresolved places, [U, 2] indices into [A, L], and -1 elsewhere: [A, L]."""
        row, position = unresolved.unbind(1)
        head = self.teacher.head
        completion = torch.full(hidden.shape[:2], -1, device=hidden.device)
        completion[row, position] = argmax_rows(
            hidden[row, position], head.weight, head.bias, excluded=self.teacher.config.mask_id)
        return completion

    def _choose(self, now: StepState, energy: Tensor, stage: int) -> Tensor:
        """[A, K] energies -> [A] chosen candidates; 0 where nothing was scored."""
        if energy.shape[1] == 1:
            return torch.zeros(len(energy), dtype=torch.long, device=energy.device)
        if self.shaping.select == "argmin":
            return energy.nan_to_num(nan=0.0).argmin(1)
        u = self.noise.choice(now.rows, now.steps, stage)
        return torch.where(energy[:, 0].isnan(), 0, resampled(energy.nan_to_num(nan=0.0), self.shaping.beta, u))
