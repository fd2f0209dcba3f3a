"""Fitting a compass: its noise states, and its independence of the trajectories that it will judge."""

import pytest
import torch

from tests.support import present
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.training.fit_compass import auc, noise_states
from tsdfm.schemas.generate import GenerateConfig, ShapingConfig
from tsdfm.schemas.train import CompassConfig


def test_noise_states_are_those_of_blind_rollouts(tiny_models):
    """[R, N, L]: full of masks at first, without any at the end, and never masked again."""
    teacher = checkpoint.load_denoiser(tiny_models.mask).network
    config = CompassConfig(kind="nce", rollouts=5, rollout_steps=6)
    states = noise_states(config, teacher, lambda *_: None)
    assert states.shape == (5, 6, teacher.config.length)
    masked = states.eq(present(teacher.config.mask_id))
    assert not masked[:, -1].any()
    assert masked[:, 0].any()
    assert not (masked[:, 1:] & ~masked[:, :-1]).any()
    assert torch.equal(states, noise_states(config, teacher, lambda *_: None))


@pytest.mark.parametrize("seed", [0, 0x6E6F6973])
def test_the_noise_is_none_of_the_trajectories_to_be_shaped(tiny_models, seed):
    """With both commands' default seeds, and any others, `generate --steps N` must not draw the very states that the compass was taught to
    reject: candidate 0 of its first steps would be a training example of the compass, labelled as noise."""
    teacher = checkpoint.load_denoiser(tiny_models.mask).network
    config = CompassConfig(kind="nce", rollouts=8)
    rollout = GenerateConfig().rollout.model_copy(update={"steps": config.rollout_steps, "seed": seed})
    states = noise_states(config, teacher, lambda *_: None)
    logs = roll_out(teacher, None, rollout, ShapingConfig(), range(8), "blind")
    seen = [torch.equal(states[i, -1], torch.from_numpy(log.tokens).long()) for i, log in enumerate(logs)]
    assert not any(seen)


def test_auc_is_the_mann_whitney_statistic():
    positive, negative = torch.tensor([3.0, 1.0, 2.0]).numpy(), torch.tensor([1.0, 0.0]).numpy()
    assert auc(positive, negative) == pytest.approx((5 + 0.5) / 6, rel=1e-6)
    assert auc(positive, positive) == 0.5
