"""Sampling counts its passes honestly; figures are those of their definitions; the frontier is read, not guessed."""

import math
import time

import numpy as np
import pytest
import torch

from tests.support import present
from tsdfm.pipeline.evaluation import samples as module
from tsdfm.pipeline.evaluation.measures.frontier import perplexity_at_entropy
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.samples import measure, of_tokens, sample, sample_texts
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.rollout import roll_out, roll_out_blind
from tsdfm.pipeline.flow.texts.blocks import roll_out_blocks
from tsdfm.pipeline.models.folder import load_denoiser
from tsdfm.pipeline.text.metrics import distinct_n, self_bleu, unigram_entropy
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.sample import SampleConfig

LENGTH = 16  # of the tiny models


@pytest.fixture(scope="module", params=["mask", "uniform"])
def model(request, tiny_models):
    return load_denoiser(getattr(tiny_models, request.param))


@pytest.mark.parametrize("steps", [1, 3, 16, 64])
def test_nfe_is_what_the_sampler_asks_of_the_model(model, steps, monkeypatch):
    network, opened = model.network, model
    asked = []

    def counted(x, t, dt=None, hidden=network.hidden):
        asked.append(len(x))
        return hidden(x, t, dt)

    monkeypatch.setattr(network, "hidden", counted)
    samples = sample_texts(network, opened.vocabulary, RolloutConfig(steps=steps, batch_size=5), 12)
    warm_up = min(5, 12)  # the one unclocked step of the first batch
    assert samples.nfe is not None
    assert samples.nfe.sum() == sum(asked) - warm_up
    assert samples.nfe.min() >= 1
    assert samples.nfe.max() <= (min(steps, LENGTH) if network.config.source == "mask" else steps)


def test_mask_at_many_steps_costs_at_most_its_length(tiny_models):
    opened = load_denoiser(tiny_models.mask)
    network = opened.network
    samples = sample_texts(network, opened.vocabulary, RolloutConfig(steps=1024), 8)
    assert samples.nfe is not None
    assert samples.nfe.max() <= LENGTH
    assert samples.nfe.mean() > LENGTH - 1  # clocks hardly ever share one of 1,024 steps


def test_samples_are_blind_rollouts_whatever_the_batches(model):
    network, opened = model.network, model
    rollout = RolloutConfig(steps=4, temperature=0.7, seed=9, batch_size=3)
    samples = sample_texts(network, opened.vocabulary, rollout, 7)
    logs = roll_out_blind(network, rollout, range(7), Use.MEASURE)
    assert samples.tokens.dtype == np.int64
    assert samples.tokens.tolist() == [log.tokens.tolist() for log in logs]
    assert samples.texts == [opened.vocabulary.decode(log.tokens.tolist()) for log in logs]
    assert samples.vocabulary == opened.vocabulary.fingerprint
    assert present(samples.seconds) > 0


@pytest.mark.parametrize("seed", [0, 7])
def test_texts_that_are_measured_were_never_trained_on(model, seed):
    """The same seed and ids as a dataset: no source of the uniform kind, and no text, is one of the dataset's."""
    rollout = RolloutConfig(steps=4, seed=seed)
    made = roll_out(model.network, None, rollout, ShapingConfig(), range(20), "blind")
    measured = roll_out_blind(model.network, rollout, range(20), Use.MEASURE)
    if model.network.config.source == "uniform":
        starts = [tuple(log.source(None).tolist()) for log in (*made, *measured)]
        assert len(set(starts)) == 40
    assert not {tuple(log.tokens.tolist()) for log in made} & {tuple(log.tokens.tolist()) for log in measured}
    assert sample_texts(model.network, model.vocabulary, rollout, 20).tokens.tolist() == [log.tokens.tolist() for log in measured]
    config = SampleConfig(model=str(model.path), number=20, rollout=rollout)
    assert sample(config) == [model.vocabulary.decode(log.tokens.tolist()) for log in measured]


def test_only_solvers_whose_passes_are_counted(model):
    with pytest.raises(ValueError, match="euler"):
        sample_texts(model.network, model.vocabulary, RolloutConfig(steps=2, solver="rk4"), 2)


def test_the_clock_leaves_out_warming_up_and_decoding(model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def rolled(network, rollout, ids, use, extent):
        now[0] += 100.0 if rollout.steps == 1 else 2.0
        return roll_out_blocks(network, rollout, ids, use, extent)

    monkeypatch.setattr(module, "roll_out_blocks", rolled)
    done: list[int] = []
    samples = sample_texts(model.network, model.vocabulary, RolloutConfig(steps=2, batch_size=4), 10, lambda stage, made, total, note="": done.append(made))
    assert samples.seconds == 3 * 2.0
    assert done == [4, 8, 10]


def test_figures_are_those_of_their_definitions(model, tiny_models):
    network, opened = model.network, model
    samples = sample_texts(network, opened.vocabulary, RolloutConfig(steps=4), 20)
    judge = open_judge(str(tiny_models.ar), torch.device("cpu"))
    found = measure(samples, [judge])
    entropy = unigram_entropy(samples.tokens)
    assert (found.samples, found.length) == (20, LENGTH)
    assert found.entropy_bits == pytest.approx(entropy.mean())
    assert found.entropy_standard_error == pytest.approx(entropy.std(ddof=1) / math.sqrt(20))
    assert found.distinct_2 == distinct_n(list(samples.tokens), 2)
    assert found.distinct_4 == distinct_n(list(samples.tokens), 4)
    assert found.self_bleu == self_bleu(samples.tokens)
    assert found.nfe == present(samples.nfe).mean()
    assert found.tokens_per_second == pytest.approx(20 * LENGTH / present(samples.seconds))
    judged = found.judges[judge.name]
    likelihood = judge.score_tokens(samples.tokens)
    assert judged.perplexity == likelihood.perplexity
    assert (judged.low, judged.high) == likelihood.interval()
    assert judged.tokens == 20 * LENGTH


def test_real_text_has_no_cost(model):
    found = measure(of_tokens(np.random.default_rng(0).integers(290, size=(4, 8)), model.vocabulary), [])
    assert (found.nfe, found.seconds, found.tokens_per_second, found.judges) == (None, None, None, {})


@pytest.mark.parametrize("shape", [(1, 16), (5, 3)])
def test_too_little_text_is_refused(model, shape):
    with pytest.raises(InputError, match="self-BLEU"):
        measure(of_tokens(np.zeros(shape, dtype=np.int64), model.vocabulary), [])


def test_the_frontier_is_log_linear_between_its_points():
    points = [(5.0, 100.0), (4.0, 10.0), (5.5, 400.0)]  # in any order
    assert perplexity_at_entropy(points, 4.5) == pytest.approx(math.sqrt(1000))
    assert perplexity_at_entropy(points, 5.25) == pytest.approx(200)
    for entropy, perplexity in points:
        assert perplexity_at_entropy(points, entropy) == pytest.approx(perplexity)


def test_the_frontier_is_not_extrapolated():
    points = [(4.0, 10.0), (5.0, 100.0)]
    assert perplexity_at_entropy(points, 3.999) is None
    assert perplexity_at_entropy(points, 5.001) is None
    assert perplexity_at_entropy([], 4.0) is None
    assert perplexity_at_entropy([(4.0, 10.0)], 4.0) == pytest.approx(10.0)
