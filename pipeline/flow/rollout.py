"""Roll a teacher out, shaped or blind: (teacher, compass, config, trajectory ids) -> jump logs.

Rings don't depend on the model, so all of them are drawn first; the rollout then visits, for every trajectory, only the
steps at which one of its clocks rings. Trajectories of a batch stand at different times while they are computed together,
which is exact (the denoiser takes one t per sequence) and keeps batches full: a trajectory never costs more than
min(N, events) forward passes, and vocabulary logits exist only for the rows that ring, a block of them at a time.

Every number is a function of (config, trajectory id), so batches, shards, workers and restarts don't change a log. The
composition of a batch and the thread count can move the last bits of a matrix product, so both are part of a dataset's
identity. The blind arm uses the rings and the candidate 0 of the shaped one: arms are paired.

A trajectory may have *fixed positions*, which hold a given token from t = 0 on: a beginning of the text, or any pattern. They
have no clock, and a compass takes them as resolved. With the mask source that is exact: a perfect teacher's posterior given
some tokens doesn't depend on t, so the rollout is the usual chain, begun at a later state of it, and gives texts *given* those
tokens as exactly as it gives texts. With the uniform source it is an approximation: the teacher was trained on states in which
each token is noise with probability 1 - kappa_t, takes the fixed ones for that, too, and so heeds them less than it should,
the less the earlier (how much it costs on a tiny joint law stands in tests/pipeline/flow/exact/test_given.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.flow.compass import Compass, quantise
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise, Use
from tsdfm.pipeline.flow.rings.clocks import clocks_of, draw_rings
from tsdfm.pipeline.flow.rings.visits import rounds
from tsdfm.pipeline.flow.shaping import Jump, Shaper, StepState
from tsdfm.pipeline.flow.solvers import SOLVERS
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import behind_given
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.terms import Arm

HALF_LOWEST = float(np.finfo(np.float16).min)
TOPK_RESOLUTION = 2.0**-7  # nat, of the stored top-k: about what float16 holds at -8, and a twentieth fewer bytes


@dataclass(frozen=True)
class Begun:
    """B trajectories that are to be rolled out together.

    ids: in [0, 2^31), of which several may be equal; fixed [B, L] int64: the tokens of fixed positions (never [MASK]), -1 where
    one is free, as at least one of each trajectory is (None: all are); use: what for, and block: which part of a text; numbers
    of others are never drawn; may_end [B, L] bool: where an end may count, for what is given may stand in a later part of the
    text (None: behind all that is fixed here).
    """

    ids: Sequence[int]
    fixed: Tensor | None = None
    use: Use = Use.MAKE
    block: int = 0
    may_end: Tensor | None = None


def draw_source(path: MixturePath, noise: Noise, length: int) -> Tensor:
    """Source tokens x_0 of the noise's B trajectories, [B, L] int64: all [MASK], or uniform over the vocabulary."""
    uniforms = noise.source(length)
    if path.mask_id is not None:
        return torch.full(uniforms.shape, path.mask_id, dtype=torch.long, device=uniforms.device)
    return (uniforms * path.vocab_size).long()


@dataclass
class _Recorder:
    """Events and choices of one batch, gathered on the way and split by trajectory at the end."""

    energy: Tensor  # [B, N, K]
    choice: Tensor  # [B, N]
    slots: Tensor  # [N] bool, the steps at which a whole candidate is chosen: a log keeps their energies and choices
    by_token: bool  # whether a log keeps energies and choices of positions, which at some steps choose by themselves
    logprobs: bool  # whether a log keeps the candidates' log-probabilities
    free: Tensor | None  # [B, L] bool, positions that have a clock; None: all, and logs say nothing of it
    events: dict[str, list[Tensor]] = field(default_factory=dict)  # what is known of every event -> of each round

    def record(self, now: StepState, jump: Jump) -> None:
        found = {"row": now.rows[jump.owner], "step": now.steps[jump.owner], "position": jump.positions, "token": jump.tokens,
                 "candidates": jump.candidates, "topk_ids": jump.topk_ids, "topk_logprobs": jump.topk_logprobs}
        if self.by_token:
            found |= {"choice": jump.token_choice, "energy": jump.token_energy}
        if self.logprobs:
            found["logprob"] = jump.logprobs
        for name, values in found.items():
            self.events.setdefault(name, []).append(values)
        self.energy[now.rows, now.steps] = jump.energy
        self.choice[now.rows, now.steps] = jump.choice


def roll_out(
    teacher: Denoiser, compass: Compass | None, rollout: RolloutConfig, shaping: ShapingConfig,
    ids: Sequence[int], arm: Arm,
) -> list[JumpLog]:
    """Roll out the trajectories `ids` of a dataset together.

    Args:
        teacher: a denoiser in eval mode; its device is used, and it computes in the dtype that it is in (`compute_in`).
        compass: scores candidates on the shaped arm, and final states on both; None: `final_energy` is None.
        rollout: steps, length (None: the teacher's), temperature, solver, seed.
        shaping: candidates, tau, selection; not used on the blind arm.
        ids: B trajectory ids in [0, 2^31).
        arm: 'blind' is exactly the teacher.

    Returns:
        B jump logs, in the order of `ids`.

    Raises:
        WorkError: the teacher's logits or the compass's energies are not finite.
    """
    return roll_out_begun(teacher, compass, rollout, shaping, Begun(ids), arm)


def roll_out_blind(
    teacher: Denoiser, rollout: RolloutConfig, ids: Sequence[int], use: Use, fixed: Tensor | None = None
) -> list[JumpLog]:
    """Roll out the trajectories `ids` of a model alone, for a use of their own. Else as `roll_out` on the blind arm.

    `use`: what for; numbers of another use, of a dataset's trajectories above all, are never drawn, whatever seed and ids.
    `fixed`: as of `Begun`.
    """
    return roll_out_begun(teacher, None, rollout, ShapingConfig(candidates=1), Begun(ids, fixed, use), "blind")


@torch.no_grad()
def roll_out_begun(
    teacher: Denoiser, compass: Compass | None, rollout: RolloutConfig, shaping: ShapingConfig, begun: Begun, arm: Arm
) -> list[JumpLog]:
    """Roll out trajectories that may have fixed positions: their logs then have a source, of either kind. Else as `roll_out`.

    Raises ValueError where `begun` is not as it should be.
    """
    device, ids = teacher.head.weight.device, list(begun.ids)
    noise = Noise(rollout.seed, torch.tensor(ids, device=device), begun.use, begun.block)
    path, length, steps = MixturePath.of(teacher.config), rollout.length or teacher.config.length, rollout.steps
    shaper = Shaper(teacher, compass if arm == "shaped" else None, rollout, shaping, noise)
    batch, grid = len(ids), torch.tensor(rollout.times, dtype=torch.float64, device=device)
    by_sequence, by_token = (steps_of(rollout) if shaper.candidates > 1 else ()
                             for steps_of in (shaping.sequence_steps_of, shaping.token_steps_of))
    slots, tokens = (torch.tensor(np.isin(np.arange(steps), group), device=device) for group in (by_sequence, by_token))
    source, free = draw_source(path, noise, length), None
    if begun.fixed is not None:
        source, free = _fixed_in(source, begun.fixed.to(device))
    rings = draw_rings(path, noise, rollout.times, length, clocks_of(rollout, teacher.config), free)
    may_end = _both(begun.may_end, None if free is None else behind_given(free))
    state, untouched = source.clone(), torch.ones_like(source, dtype=torch.bool) if free is None else free.clone()
    recorder = _Recorder(torch.full((batch, steps, shaper.candidates), torch.nan, device=device),
                         torch.zeros(batch, steps, dtype=torch.long, device=device), slots,
                         shaping.level != "sequence", rollout.logprobs, free)
    for each in rounds(rings, by_sequence, by_token):
        row, step = each.rows, each.steps
        now = StepState(row, step, grid[step], grid[step + 1], state[row], untouched[row], (slots | tokens)[step], 1 / steps,
                        each.some[0], None if free is None else free[row], tokens[step], each.some[1],
                        None if may_end is None else may_end[row])
        jump = shaper.jump(now, each.clocks, SOLVERS[rollout.solver](teacher, now, shaper.advance))
        state[row], untouched[row] = jump.next_state, now.untouched & ~each.clocks.rings
        recorder.record(now, jump)
    final = None
    if compass is not None:
        energy = compass.energy(state[:, None], torch.ones(batch, device=device), None)
        shaper.note("compass", torch.arange(batch, device=device), energy)
        final = quantise(energy[:, 0])
    shaper.check_finite()
    kept_source = None if path.mask_id is not None and free is None else source
    return _split(recorder, ids, arm, kept_source, state, final)


def _fixed_in(source: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """A source [B, L] with its fixed positions filled in, and which are free [B, L] bool."""
    free = fixed < 0
    if fixed.shape != source.shape or not bool(free.any(1).all()):
        raise ValueError(f"fixed positions {tuple(fixed.shape)} of trajectories {tuple(source.shape)}: these must agree, and "
                         "each trajectory have a free position")
    return torch.where(free, source, fixed), free


def _both(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Where both hold, of which None holds everywhere."""
    return second if first is None else first if second is None else first & second


def _halved(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Log-probabilities as they are stored: to TOPK_RESOLUTION, and not below what float16 can hold."""
    return np.maximum(np.round(logprobs / TOPK_RESOLUTION) * TOPK_RESOLUTION, HALF_LOWEST).astype(np.float16)


_STORED = {  # of what is recorded of events
    "step": np.int32, "position": np.int32, "token": np.int32, "candidates": np.int32, "topk_ids": np.int32,
    "topk_logprobs": np.float16, "choice": np.int8, "energy": np.float32, "logprob": np.float16,
}


def _split(
    recorder: _Recorder, ids: Sequence[int], arm: Arm, source: Tensor | None, state: Tensor, final: Tensor | None
) -> list[JumpLog]:
    events = {name: torch.cat(parts).cpu().numpy() for name, parts in recorder.events.items()}
    order = np.lexsort((events["position"], events["step"], events["row"]))
    bounds = np.searchsorted(events["row"][order], np.arange(len(ids) + 1))
    stored: dict[str, Any] = {
        f"event_{name}": _halved(events[name][order]) if kind is np.float16 else events[name][order].astype(kind)
        for name, kind in _STORED.items() if name in events
    }
    slots = recorder.slots.cpu().numpy()
    energy = recorder.energy.cpu().numpy()[:, slots].astype(np.float32)
    if not slots.any():
        energy = np.empty((len(ids), 0, 1), np.float32)
    choice = recorder.choice.cpu().numpy()[:, slots].astype(np.int8)
    finals = [None] * len(ids) if final is None else final.tolist()
    tokens = state.cpu().numpy().astype(np.int32)
    sources = [None] * len(ids) if source is None else source.cpu().numpy().astype(np.int32)
    fixed = None if recorder.free is None else ~recorder.free.cpu().numpy()
    return [
        JumpLog(
            trajectory_id=int(trajectory_id), arm=arm, source_tokens=sources[index], tokens=tokens[index],
            step_energy=energy[index], step_choice=choice[index], final_energy=finals[index],
            fixed_positions=None if fixed is None else np.flatnonzero(fixed[index]).astype(np.int32),
            **{name: values[bounds[index] : bounds[index + 1]] for name, values in stored.items()},
        )
        for index, trajectory_id in enumerate(ids)
    ]
