"""Roll a teacher out, shaped or blind: (teacher, compass, config, trajectory ids) -> jump logs.

Rings don't depend on the model, so all of them are drawn first; the rollout then visits, for every trajectory, only the
steps at which one of its clocks rings. Trajectories of a batch stand at different times while they are computed together,
which is exact (the denoiser takes one t per sequence) and keeps batches full: a trajectory never costs more than
min(N, events) forward passes, and vocabulary logits exist only for the rows that ring, a block of them at a time.

Every number is a function of (config, trajectory id), so batches, shards, workers and restarts don't change a log. The
composition of a batch and the thread count can move the last bits of a matrix product, so both are part of a dataset's
identity. The blind arm uses the rings and the candidate 0 of the shaped one: arms are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.terms import Arm

HALF_LOWEST = float(np.finfo(np.float16).min)
TOPK_RESOLUTION = 2.0**-7  # nat, of the stored top-k: about what float16 holds at -8, and a twentieth fewer bytes


def draw_source(path: MixturePath, noise: Noise, length: int) -> Tensor:
    """Source tokens x_0 of the noise's B trajectories, [B, L] int64: all [MASK], or uniform over the vocabulary."""
    uniforms = noise.source(length)
    if path.mask_id is not None:
        return torch.full(uniforms.shape, path.mask_id, dtype=torch.long, device=uniforms.device)
    return (uniforms * path.vocab_size).long()


@dataclass
class _Recorder:
    """Events and choices of one batch, gathered on the way and split by trajectory at the end."""

    events: list[tuple[Tensor, ...]]  # (row, step, position, token, candidates, topk ids, topk logprobs)
    energy: Tensor  # [B, N, K]
    choice: Tensor  # [B, N]
    shaped: Tensor  # [N] bool, the steps whose energies and choices a log keeps

    def record(self, now: StepState, jump: Jump) -> None:
        self.events.append((
            now.rows[jump.owner], now.steps[jump.owner], jump.positions, jump.tokens, jump.candidates,
            jump.topk_ids, jump.topk_logprobs,
        ))
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
    noise = Noise(rollout.seed, torch.tensor(list(ids), device=teacher.head.weight.device))
    return _rolled_out(teacher, compass, rollout, shaping, noise, arm)


def roll_out_blind(teacher: Denoiser, rollout: RolloutConfig, ids: Sequence[int], use: Use) -> list[JumpLog]:
    """Roll out the trajectories `ids` of a model alone, for a use of their own. Else as `roll_out` on the blind arm.

    `use`: what for; numbers of another use, of a dataset's trajectories above all, are never drawn, whatever seed and ids.
    """
    noise = Noise(rollout.seed, torch.tensor(list(ids), device=teacher.head.weight.device), use)
    return _rolled_out(teacher, None, rollout, ShapingConfig(candidates=1), noise, "blind")


@torch.no_grad()
def _rolled_out(
    teacher: Denoiser, compass: Compass | None, rollout: RolloutConfig, shaping: ShapingConfig, noise: Noise, arm: Arm
) -> list[JumpLog]:
    device, ids = noise.device, noise.ids.tolist()
    path, length, steps = MixturePath.of(teacher.config), rollout.length or teacher.config.length, rollout.steps
    shaper = Shaper(teacher, compass if arm == "shaped" else None, rollout, shaping, noise)
    batch, grid = len(ids), torch.tensor(rollout.times, dtype=torch.float64, device=device)
    shaped_steps = shaping.steps_of(rollout) if shaper.candidates > 1 else ()
    shaped = torch.tensor(np.isin(np.arange(steps), shaped_steps), device=device)
    source = draw_source(path, noise, length)
    rings = draw_rings(path, noise, rollout.times, length, clocks_of(rollout, teacher.config))
    state, untouched = source.clone(), torch.ones_like(source, dtype=torch.bool)
    recorder = _Recorder([], torch.full((batch, steps, shaper.candidates), torch.nan, device=device),
                         torch.zeros(batch, steps, dtype=torch.long, device=device), shaped)
    for each in rounds(rings, shaped_steps):
        row, step = each.rows, each.steps
        now = StepState(row, step, grid[step], grid[step + 1], state[row], untouched[row], shaped[step], 1 / steps, each.shaped)
        jump = shaper.jump(now, each.clocks, SOLVERS[rollout.solver](teacher, now, shaper.advance))
        state[row], untouched[row] = jump.next_state, now.untouched & ~each.clocks.rings
        recorder.record(now, jump)
    final = None
    if compass is not None:
        energy = compass.energy(state[:, None], torch.ones(batch, device=device), None)
        shaper.note("compass", torch.arange(batch, device=device), energy)
        final = quantise(energy[:, 0])
    shaper.check_finite()
    return _split(recorder, ids, arm, None if path.mask_id is not None else source, state, final)


def _halved(logprobs: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Log-probabilities as they are stored: to TOPK_RESOLUTION, and not below what float16 can hold."""
    return np.maximum(np.round(logprobs / TOPK_RESOLUTION) * TOPK_RESOLUTION, HALF_LOWEST).astype(np.float16)


def _split(
    recorder: _Recorder, ids: Sequence[int], arm: Arm, source: Tensor | None, state: Tensor, final: Tensor | None
) -> list[JumpLog]:
    columns = [torch.cat(parts).cpu().numpy() for parts in zip(*recorder.events, strict=True)]
    row, step, position = columns[:3]
    order = np.lexsort((position, step, row))
    row, step, position, token, candidates, topk_ids, topk_logprobs = (column[order] for column in columns)
    bounds = np.searchsorted(row, np.arange(len(ids) + 1))
    kept = recorder.shaped.cpu().numpy()
    energy, choice = (recorded.cpu().numpy()[:, kept] for recorded in (recorder.energy, recorder.choice))
    finals = None if final is None else final.tolist()
    tokens = state.cpu().numpy().astype(np.int32)
    sources = None if source is None else source.cpu().numpy().astype(np.int32)
    logs = []
    for index, trajectory_id in enumerate(ids):
        part = slice(bounds[index], bounds[index + 1])
        logs.append(JumpLog(
            trajectory_id=int(trajectory_id), arm=arm, source_tokens=None if sources is None else sources[index],
            tokens=tokens[index], event_step=step[part].astype(np.int32), event_position=position[part].astype(np.int32),
            event_token=token[part].astype(np.int32), event_candidates=candidates[part].astype(np.int32),
            event_topk_ids=topk_ids[part].astype(np.int32),
            event_topk_logprobs=_halved(topk_logprobs[part]),
            step_energy=energy[index].astype(np.float32), step_choice=choice[index].astype(np.int8),
            final_energy=None if finals is None else finals[index],
        ))
    return logs
