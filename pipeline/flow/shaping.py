"""One shaped jump: K candidate tokens for every ringing position, energies, and the choice among candidates.

At the level *sequence* the K-th candidates of all positions of a trajectory that ring are one whole candidate, of which the
compass scores the text, and one of K is kept. At the level *token* every ringing position chooses by itself:

    1. The text holds candidate 0 at every ringing position, and the teacher's guess where a position is still noise.
    2. The compass gives every candidate c_k of each of these positions its token energy e_k, all else as it stands.
    3. Each position keeps the candidate of the lowest e_k (`argmin`), or draws one with probability proportional to
       exp(-beta e_k / L) (`resample`), by itself and all at the same time.
    4. In a further sweep the text holds what was chosen, and 2 and 3 are done again, among the same K candidates.

e_k / L is what a candidate adds to the text's energy in nats per token, so that beta means the same at both levels. In the
residual form e_k has the proposal's log q(c_k) added to it. Positions whose candidates agree are not asked about. Energies
that are stored are those of the last sweep.

A model of padded texts writes nothing but end tokens behind an end. With the mask source an end that stands in the state stays,
so all that rings behind it is given the end token, whatever the model says, which is not asked for that in training. (A perfect
model would say the same.) With the uniform source an end in a state may be noise, and the model is asked.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tsdfm.kernels.sample_rows import argmax_rows, sample_rows
from tsdfm.pipeline.flow.compass import (
    Compass,
    TokenCompass,
    TokenSets,
    complete,
    quantise,
    quantise_tokens,
    scored_length,
)
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.visits import Ringing, places
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import is_written
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@dataclass(frozen=True)
class StepState:
    """Where A trajectories of the batch stand: each at its own step, about to jump.

    rows [A]: indices into the batch; steps [A] int64; t, t_next [A] float64: the jump's start and end; state [A, L] int64;
    untouched [A, L] bool: positions that still hold their source token; shaped [A] bool; dt: 1/N, what a student is told;
    some_shaped: whether any chooses among whole states, which nobody need ask the device; free [A, L] bool: positions that have
    a clock (None: all), of which a fixed one is not untouched; by_token [A] bool: those of the shaped at which every position
    chooses by itself (None: nobody); some_by_token: whether any does; may_end [A, L] bool: where an end counts
    (None: everywhere).
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
    by_token: Tensor | None = None
    some_by_token: bool = False
    may_end: Tensor | None = None

    @property
    def hidden_time(self) -> tuple[Tensor, Tensor]:
        """t and dt as a denoiser takes them, [A] float32 each."""
        return self.t.float(), torch.full_like(self.t, self.dt, dtype=torch.float32)


@dataclass(frozen=True)
class Jump:
    """The outcome for R ringing positions, row-major over (trajectory, position).

    next_state [A, L]; owner [R] (index into the step state), positions [R], tokens [R]; candidates and their logprobs under the
    teacher [R, K]; topk_ids and topk_logprobs [R, k]; energy [A, K] (NaN: not scored) and choice [A] int64 among whole
    candidates; token_energy [R, K] (NaN: not scored), nats, and token_choice [R] int64: of every position, by whichever level.
    """

    next_state: Tensor
    owner: Tensor
    positions: Tensor
    tokens: Tensor
    candidates: Tensor
    logprobs: Tensor
    topk_ids: Tensor
    topk_logprobs: Tensor
    energy: Tensor
    choice: Tensor
    token_energy: Tensor
    token_choice: Tensor


@dataclass(frozen=True)
class _Candidates:
    """What the A trajectories of a step may become: K tokens at each of the R ringing positions."""

    clocks: Ringing
    tokens: Tensor  # [R, K] int64
    logprobs: Tensor  # [R, K] under the teacher

    @property
    def differ(self) -> Tensor:
        """Of which positions the candidates differ, [R] bool."""
        return (self.tokens != self.tokens[:, :1]).any(1)

    def states(self, state: Tensor) -> Tensor:
        """The K states that each state [A, L] may become, the k-th with all k-th candidates: [A, K, L]."""
        states = state[:, None].repeat(1, self.tokens.shape[1], 1)
        states[self.clocks.owner, :, self.clocks.positions] = self.tokens
        return states


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
        shaped = now.shaped[owner, None]
        found = _Candidates(clocks, torch.where(shaped, tokens, tokens[:, :1]), torch.where(shaped, logprobs, logprobs[:, :1]))
        energy = self._energy(now, hidden, found)
        choice = self._choose(now, energy, stage)
        token_energy, token_choice = self._by_token(now, hidden, found, choice[owner], stage)
        tokens = found.tokens.gather(1, token_choice[:, None])[:, 0]
        state = now.state.clone()
        state[owner, positions] = tokens
        return Jump(state, owner, positions, tokens, found.tokens, found.logprobs, drawn.topk_ids, drawn.topk_logprobs, energy,
                    choice, token_energy, token_choice)

    def _padded(self, now: StepState, clocks: Ringing, tokens: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        """Drawn tokens and their log-probabilities, [R, K] each, with the end token, which is certain, behind an end."""
        end_id, mask_id = self.teacher.config.end_id, self.teacher.config.mask_id
        if end_id is None or mask_id is None:
            return tokens, logprobs
        written = is_written(now.state, end_id, now.may_end)
        behind = ~written[clocks.owner, clocks.positions][:, None]
        return tokens.masked_fill(behind, end_id), logprobs.masked_fill(behind, 0.0)

    def _energy(self, now: StepState, hidden: Tensor, drawn: _Candidates) -> Tensor:
        """[A, K] energies, NaN for trajectories that don't choose among whole candidates here, or whose candidates all
        agree.
        """
        owner = drawn.clocks.owner
        energy = torch.full((len(now.rows), self.candidates), torch.nan, device=owner.device)
        if self.compass is None or not now.some_shaped:
            return energy
        asked = now.shaped if now.by_token is None else now.shaped & ~now.by_token
        scored = _any_of(owner, drawn.differ, asked)
        unresolved = now.untouched & ~drawn.clocks.rings & scored[:, None]
        count, open_positions = torch.stack([scored.sum(), unresolved.sum()]).tolist()  # all that is read in a step
        if not count:
            return energy
        scored = places(scored, count)[:, 0]
        completion = self._completion(hidden, places(unresolved, open_positions), scored)
        states = drawn.states(now.state)[scored]
        values = self.compass.energy(states, now.t_next[scored], completion)
        if self.shaping.residual and self.compass.proposal_weight:
            size = torch.full(energy.shape[:1], states.shape[-1], device=energy.device)
            size[scored] = scored_length(complete(states, completion), self.teacher.config.end_id)
            counted = (drawn.clocks.positions < size[owner])[:, None]
            proposal = torch.zeros(energy.shape, dtype=torch.float64, device=energy.device)
            proposal.index_add_(0, owner, drawn.logprobs.double().masked_fill(~counted, 0.0))
            values = values + self.compass.proposal_weight * (proposal / size[:, None])[scored].float()
        self.note("compass", now.rows[scored], values)
        energy[scored] = quantise(values)
        return energy

    def _by_token(
        self, now: StepState, hidden: Tensor, drawn: _Candidates, choice: Tensor, stage: int
    ) -> tuple[Tensor, Tensor]:
        """Energies [R, K], NaN where nothing was scored, and choices [R] of all positions: where a trajectory does not choose
        by token, those of `choice` [R]."""
        owner, positions = drawn.clocks.owner, drawn.clocks.positions
        energy = torch.full(drawn.tokens.shape, torch.nan, device=owner.device)
        if now.by_token is None or not now.some_by_token:
            return energy, choice
        assert isinstance(self.compass, TokenCompass)
        asked = drawn.differ & now.by_token[owner]
        scored = _any_of(owner, asked, now.by_token)
        unresolved = now.untouched & ~drawn.clocks.rings & scored[:, None]
        count, open_positions, some = torch.stack([scored.sum(), unresolved.sum(), asked.sum()]).tolist()
        if not some:
            return energy, choice
        index_of, scored, asked = scored.cumsum(0) - 1, places(scored, count)[:, 0], places(asked, some)[:, 0]
        completion = self._completion(hidden, places(unresolved, open_positions), scored)
        text = now.state.clone()
        text[owner, positions] = drawn.tokens[:, 0]
        sets = TokenSets(index_of[owner[asked]], positions[asked], drawn.tokens[asked])
        rows = now.rows[owner[asked]]
        for sweep in range(self.shaping.sweeps):
            values = self.compass.token_energy(text[scored], now.t_next[scored], completion, sets)
            if self.shaping.residual and self.compass.proposal_weight:
                values = values + self.compass.proposal_weight * drawn.logprobs[asked]
            self.note("compass", rows, values)
            values = quantise_tokens(values)
            u = self.noise.token_choice(rows, now.steps[owner[asked]], sets.positions, sweep, stage)
            chosen = self._chosen(values.double() / now.state.shape[-1], u)
            text[owner[asked], sets.positions] = sets.tokens.gather(1, chosen[:, None])[:, 0]
        energy[asked] = values
        return energy, choice.index_copy(0, asked, chosen)

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

    def _completion(self, hidden: Tensor, unresolved: Tensor, rows: Tensor) -> Tensor | None:
        """Of `rows` [S], the teacher's argmax at unresolved places, [U, 2] indices into [A, L], and -1 elsewhere: [S, L].

        None where the compass does not ask for it.
        """
        if self.compass is None or not self.compass.needs_completion:
            return None
        row, position = unresolved.unbind(1)
        head = self.teacher.head
        completion = torch.full(hidden.shape[:2], -1, device=hidden.device)
        completion[row, position] = argmax_rows(
            hidden[row, position], head.weight, head.bias, excluded=self.teacher.config.mask_id)
        return completion[rows]

    def _choose(self, now: StepState, energy: Tensor, stage: int) -> Tensor:
        """[A, K] energies -> [A] chosen candidates; 0 where nothing was scored."""
        if energy.shape[1] == 1:
            return torch.zeros(len(energy), dtype=torch.long, device=energy.device)
        chosen = self._chosen(energy.nan_to_num(nan=0.0), self.noise.choice(now.rows, now.steps, stage))
        return torch.where(energy[:, 0].isnan(), 0, chosen)

    def _chosen(self, energy: Tensor, u: Tensor) -> Tensor:
        """The choice by the energies [n, K], nats per token, with uniforms u [n] where it is drawn: [n] int64."""
        return energy.argmin(1) if self.shaping.select == "argmin" else resampled(energy, self.shaping.beta, u)


def _any_of(owner: Tensor, positions: Tensor, among: Tensor) -> Tensor:
    """Which of the trajectories `among` [A] bool own one of the positions [R] bool, whose owners are [R]: [A] bool."""
    count = torch.zeros(len(among), dtype=torch.int32, device=owner.device).index_add_(0, owner, positions.int())
    return (count > 0) & among
