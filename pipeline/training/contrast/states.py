"""The noise of noise-contrastive estimation: states of a teacher's blind rollouts."""

import torch
from torch import Tensor

from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.rollout import roll_out_blind
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.text.ends.written import padded_state
from tsdfm.pipeline.training.data_parallel import Place
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.train import CompassConfig

ROLLOUT_BATCH = 64


def noise_states(
    config: CompassConfig, teacher: Denoiser, progress: Progress = unheard, place: Place | None = None
) -> Tensor:
    """Every state of every blind rollout: [R, N, L] int32, entry [r, s] at time (s + 1)/N; the same in all processes.

    None is a trajectory of `generate`: those the compass will judge, and it must not have seen them. Rollouts are functions
    of their number, so it does not matter which process makes which. `teacher` is left on the CPU.
    """
    place = place or Place.alone()
    rollout = RolloutConfig(steps=config.rollout_steps, seed=config.optim.seed)
    states = torch.zeros(config.rollouts, config.rollout_steps, teacher.config.length, dtype=torch.int32)
    teacher.to(place.device)
    for start in range(place.rank * ROLLOUT_BATCH, config.rollouts, place.world * ROLLOUT_BATCH):
        ids = range(start, min(start + ROLLOUT_BATCH, config.rollouts))
        for log in roll_out_blind(teacher, rollout, ids, Use.CONTRAST):
            for step in range(config.rollout_steps):
                states[log.trajectory_id, step] = torch.from_numpy(log.state_after(step, teacher.config.mask_id))
        progress("rolling out noise", min(start + place.world * ROLLOUT_BATCH, config.rollouts), config.rollouts)
    teacher.cpu()
    states = place.summed(states)  # each state is zero in all processes but one
    return padded_state(states, teacher.config.end_id, teacher.config.mask_id).int()
