"""The cost of trajectories: counts in closed form against counts of real runs, bytes and seconds by a few."""

import math

import pytest
import torch

from tests.support import make_dataset, tiny_config
from tsdfm.jobs.plan.rollouts import Meter, RolloutWork, makespan, measure, visits
from tsdfm.pipeline.dataset.manifest import ShardPlan, plan
from tsdfm.pipeline.flow.generate import make_shard, standing
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.opening import identity_of, open_models
from tsdfm.pipeline.flow.rings.clocks import draw_rings
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig

CPU = torch.device("cpu")


@pytest.mark.parametrize(("mask_id", "clocks"), [(None, "independent"), (9, "independent"), (None, "spaced"), (9, "spaced"), (None, "even")])
@pytest.mark.parametrize(("exponent", "steps", "length"), [(1.0, 8, 16), (2.0, 64, 5), (0.5, 1, 3)])
def test_visits_are_the_mean_of_drawn_rings(mask_id, clocks, exponent, steps, length):
    path, times = MixturePath(exponent, 10, mask_id), RolloutConfig(steps=steps).times
    shaped = tuple(range(steps // 2, steps))
    rings = draw_rings(path, Noise(3, torch.arange(4000)), times, length, clocks)
    visited = rings.any(-1).double()
    told = visits(path, times, length, shaped, clocks)
    for found, samples in ((told.steps, visited.sum(1)), (told.shaped, visited[:, list(shaped)].sum(1)),
                           (told.events, rings.double().sum((1, 2)))):
        assert abs(found - float(samples.mean())) <= 5 * float(samples.std()) / math.sqrt(len(samples)) + 1e-9


def opened(models, tmp_path, **changes):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", models) | changes)
    found = open_models(config, CPU)
    return found, identity_of(config, found, CPU)


@pytest.mark.parametrize("compass", ["ar", "nce", "contrast", "denoiser"])
def test_work_is_what_a_real_shard_takes(tiny_models, tmp_path, compass):
    named = "denoiser" if compass == "denoiser" else str(getattr(tiny_models, compass))
    models, identity = opened(tiny_models, tmp_path, compass=named, trajectories=64, shard_size=64,
                              rollout={"steps": 8, "batch_size": 16}, shaping={"candidates": 4, "tau": 0.5})
    meter = Meter()
    with meter.reading(models) as metered:
        done = make_shard(metered, identity, LocalStore(tmp_path), plan(identity)[0])
    told = RolloutWork.of(identity, 64)
    assert meter.forwards == pytest.approx(told.forwards, rel=0.05)
    assert done.events == told.events  # mask source: each position jumps once
    assert 0.7 * told.candidates < meter.candidates <= 1.05 * told.candidates  # steps whose candidates agree aren't scored
    assert 0 < meter.compass_tokens <= meter.candidates * identity.grid.length * (2 if compass == "denoiser" else 1)
    counted = meter.forwards
    make_shard(models, identity, LocalStore(tmp_path), plan(identity)[0])
    assert meter.forwards == counted  # outside, nothing is counted


@pytest.mark.parametrize(("compass", "passes"), [("ar", 1), ("contrast", 1), ("denoiser", 2)])
def test_a_choice_by_token_scores_a_text_a_sweep(tiny_models, tmp_path, compass, passes):
    models, identity = opened(tiny_models, tmp_path, compass=str(getattr(tiny_models, compass, compass)), trajectories=64,
                              shard_size=64, arm="shaped", rollout={"steps": 8, "batch_size": 16},
                              shaping={"candidates": 4, "level": "sequence_to_token", "sweeps": 2})
    meter = Meter()
    with meter.reading(models) as metered:
        make_shard(metered, identity, LocalStore(tmp_path), plan(identity)[0])
    told = RolloutWork.of(identity, 64)
    assert meter.forwards == pytest.approx(told.forwards, rel=0.05)
    assert 0.7 * told.candidates < meter.candidates <= 1.05 * told.candidates
    assert meter.compass_tokens <= meter.candidates * identity.grid.length * passes
    by_sequence = identity.model_copy(update={"shaping": identity.shaping.model_copy(update={"level": "sequence", "sweeps": 1})})
    assert told.candidates < 0.8 * RolloutWork.of(by_sequence, 64).candidates


def test_four_stages_and_blind_trajectories(tiny_models, tmp_path):
    models, identity = opened(tiny_models, tmp_path, arm="blind", rollout={"steps": 4, "batch_size": 8, "solver": "rk4"})
    meter = Meter()
    with meter.reading(models) as metered:
        make_shard(metered, identity, LocalStore(tmp_path), ShardPlan("x.parquet", 0, 32))
    told = RolloutWork.of(identity, 32)
    assert meter.forwards == pytest.approx(told.forwards, rel=0.05)
    assert meter.candidates == told.candidates == 32  # the finished texts


def test_bytes_of_a_few_are_those_of_a_dataset(tiny_models, tmp_path):
    models, identity = opened(tiny_models, tmp_path, trajectories=40, shard_size=20)
    found = measure(models, identity, 0, 0.2)
    manifest = make_dataset(tmp_path / "out", tiny_models, trajectories=40, shard_size=20)
    planned = found.bytes / found.trajectories * 40 + 2 * found.shard_bytes
    assert planned == pytest.approx(manifest.totals.bytes, rel=0.25)
    assert found.share == 1
    assert found.seconds_each > 0


def test_a_long_batch_is_measured_in_fewer_steps(tiny_models, tmp_path, monkeypatch):
    monkeypatch.setattr("tsdfm.jobs.plan.rollouts.LONG_SECONDS", 0.0)
    models, identity = opened(tiny_models, tmp_path)
    assert measure(models, identity, 0, 0.0).share < 1


def test_shards_go_to_whoever_is_free():
    assert makespan([4, 4, 4], 2, 1.0) == 8
    assert makespan([6, 2, 2, 2], 2, 0.5) == 3
    assert makespan([5], 16, 2.0) == 10


def test_standing_tells_what_is_missing_and_writes_nothing(tiny_models, tmp_path):
    config = GenerateConfig.model_validate(tiny_config(tmp_path / "out", tiny_models))
    assert standing(config, CPU).missing == [0, 1, 2]
    assert not (tmp_path / "out").exists()
    make_dataset(tmp_path / "out", tiny_models)
    assert standing(config, CPU).missing == []
    larger = standing(config.model_copy(update={"trajectories": 14}), CPU)
    assert (larger.carried, larger.missing) == ([0, 1], [2, 3])
    assert not (tmp_path / "out" / ".growing").exists()
