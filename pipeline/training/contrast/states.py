"""What real text is set against: states of a teacher's blind rollouts, kept for a training that is resumed."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.rollout import roll_out_blind
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import ModelFolder
from tsdfm.pipeline.storage.atomic import write_atomic
from tsdfm.pipeline.storage.store import explained
from tsdfm.pipeline.text.ends.written import padded_state
from tsdfm.pipeline.training.loop.checkpoint import digest_of
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.train import CompassConfig

ROLLOUT_BATCH = 64
FILE = "noise_states.safetensors"  # in the folder of the training state


def kept_states(
    config: CompassConfig, opened: ModelFolder[Denoiser], folder: Path, progress: Progress = unheard, place: Place | None = None
) -> Tensor:
    """As `noise_states`, of an opened teacher; those that the first process finds in `folder`, else made and left there.

    Raises WorkError if they can't be written.
    """
    place, file = place or Place.alone(), folder / FILE
    shape = (config.rollouts, config.rollout_steps, opened.network.config.length)
    clocks = {} if config.rollout_clocks is None else {"clocks": config.rollout_clocks}
    made_of = json.dumps({"teacher": opened.fingerprint, "shape": shape, "seed": config.optim.seed, **clocks})
    found = _read(file, made_of) if place.rank == 0 else None
    if place.any(found is not None):
        return place.summed(torch.zeros(shape, dtype=torch.int32) if found is None else found)
    states = noise_states(config, opened.network, progress, place)
    if place.rank == 0:
        with explained("write there", str(folder)):
            folder.mkdir(parents=True, exist_ok=True)
            tensors = {"states": states.contiguous()}
            write_atomic(file, save(tensors, metadata={"made_of": made_of, "sha256": digest_of(tensors)}))
    return states


def _read(file: Path, made_of: str) -> Tensor | None:
    """The states in a file; None: it is not there, damaged, or of others."""
    try:
        with safe_open(str(file), framework="pt") as opened:
            noted = opened.metadata() or {}
            if noted.get("made_of") != made_of:
                return None
            states: Tensor = opened.get_tensor("states")
            return states if noted.get("sha256") == digest_of({"states": states}) else None
    except (SafetensorError, OSError):
        return None


def noise_states(
    config: CompassConfig, teacher: Denoiser, progress: Progress = unheard, place: Place | None = None
) -> Tensor:
    """Every state of every blind rollout: [R, N, L] int32, entry [r, s] at time (s + 1)/N; the same in all processes.

    None is a trajectory of `generate`: those the compass will judge, and it must not have seen them. Rollouts are functions
    of their number, so it does not matter which process makes which. `teacher` is left on the CPU.
    """
    place = place or Place.alone()
    rollout = RolloutConfig(steps=config.rollout_steps, seed=config.optim.seed, clocks=config.rollout_clocks)
    states = torch.zeros(config.rollouts, config.rollout_steps, teacher.config.length, dtype=torch.int32)
    teacher.to(place.device)
    for start in range(place.rank * ROLLOUT_BATCH, config.rollouts, place.world * ROLLOUT_BATCH):
        ids = range(start, min(start + ROLLOUT_BATCH, config.rollouts))
        for log in roll_out_blind(teacher, rollout, ids, Use.CONTRAST):
            for step in range(config.rollout_steps):
                states[log.trajectory_id, step] = torch.from_numpy(log.state_after(step, teacher.config.mask_id))
        progress("rolling out the teacher", min(start + place.world * ROLLOUT_BATCH, config.rollouts), config.rollouts)
    teacher.cpu()
    states = place.summed(states)  # each state is zero in all processes but one
    return padded_state(states, teacher.config.end_id, teacher.config.mask_id).int()
