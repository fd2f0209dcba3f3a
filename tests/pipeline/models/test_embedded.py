"""The embedded models: small, whole, made by the recipes that stand beside them, and fit for their job."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tests.support import present
from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.folder import embedded, load
from tsdfm.pipeline.text.metrics import unigram_entropy
from tsdfm.schemas.base import Frozen, parse
from tsdfm.schemas.former import FORMER
from tsdfm.schemas.generate import GenerateConfig, RolloutConfig, ShapingConfig
from tsdfm.schemas.terms import Arm
from tsdfm.schemas.train import CompassConfig, PretrainConfig

NAMES = ["teacher-mask", "teacher-uniform", "compass", "judge"]
MODELS: dict[str, type[Frozen]] = {
    "teacher-mask": PretrainConfig, "teacher-uniform": PretrainConfig, "compass": CompassConfig, "judge": CompassConfig,
}
FINGERPRINTS = {  # datasets and students made with these models name them; whoever replaces one notes it in schemas/former.py
    "teacher-mask": "65054e1f6b9d952b4ef30caa7ede09ac8d0307f489e91360d017e06d408ea127",
    "teacher-uniform": "5257c51ad551d49c88ca2a22c3413036d7fe9684522cdd41c109d51d46bb033a",
    "compass": "98104cdfbdf366cb74c48b54b6713e4046238ece67b0e24901865fceb391a414",
    "judge": "5bfeb218682a4c9de0acd19e1223d2fcfcad718653808fb86ee6ac8add78cc0b",
}


def training(name: str) -> dict:
    return json.loads((embedded(name) / "training.json").read_text())


def test_together_they_are_at_most_25_megabytes():
    root = embedded("")
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) <= 25e6


@pytest.mark.parametrize("name", NAMES)
def test_each_is_what_its_recipe_makes(name):
    recipe = yaml.safe_load((embedded(name) / "recipe.yaml").read_text())
    assert load(embedded(name)).fingerprint not in FORMER
    assert parse(MODELS[name], recipe, name) == MODELS[name].model_validate(training(name)["config"])
    assert f" {name}" in present(re.search(r"^MODELS :=.*$", (Path(__file__).parents[3] / "Makefile").read_text(), re.MULTILINE))[0]


@pytest.mark.parametrize("name", NAMES)
def test_each_is_the_one_that_is_known(name):
    assert load(embedded(name)).fingerprint == FINGERPRINTS[name]


def test_they_share_one_tokenizer_and_the_judge_is_independent_of_the_compass():
    opened = {name: load(embedded(name)) for name in NAMES}
    assert len({c.vocabulary.fingerprint for c in opened.values()}) == 1
    assert len({c.fingerprint for c in opened.values()}) == len(NAMES)
    assert training("compass")["config"]["corpus"]["part"] == "first"
    assert training("judge")["config"]["corpus"]["part"] == "second"


def test_a_likelihood_is_perplexity_with_an_interval_around_it():
    likelihood = Likelihood(np.array([2.0, 4.0, 6.0]), np.array([2.0, 2.0, 2.0]))
    assert likelihood.perplexity == pytest.approx(np.exp(2))
    low, high = likelihood.interval()
    assert np.exp(1) <= low < likelihood.perplexity < high <= np.exp(3)


def test_the_judge_scores_a_text_as_its_own_softmax_does():
    network = load(embedded("judge")).network
    tokens = torch.randint(2047, (3, 64), generator=torch.Generator().manual_seed(0))
    likelihood = open_judge("embedded", torch.device("cpu")).score_tokens(tokens.numpy())
    logprob = network(tokens).log_softmax(-1).gather(-1, tokens[..., None])[..., 0].sum(-1)
    assert likelihood.nats == pytest.approx(-logprob.numpy(), rel=1e-4)
    assert likelihood.tokens.tolist() == [64.0] * 3


@pytest.mark.slow
@pytest.mark.release
def test_shaping_halves_the_judges_perplexity_and_a_cooler_teacher_as_dull_is_above_it():
    models = open_models(GenerateConfig(out="unused"), torch.device("cpu"))
    judge = open_judge("embedded", torch.device("cpu"))
    settings: dict[str, tuple[Arm, float]] = {"shaped": ("shaped", 1.0), "blind": ("blind", 1.0), "cooled": ("blind", 0.7)}
    tokens = {
        name: np.stack([log.tokens for log in roll_out(
            models.teacher.network, models.compass, RolloutConfig(steps=32, temperature=temperature), ShapingConfig(), range(48), arm)])
        for name, (arm, temperature) in settings.items()
    }
    perplexity = {name: judge.score_tokens(t.astype(np.int64)).perplexity for name, t in tokens.items()}
    entropy = {name: unigram_entropy(t).mean() for name, t in tokens.items()}
    assert perplexity["shaped"] < perplexity["blind"] / 2
    assert entropy["shaped"] > entropy["cooled"] - 0.05
    assert perplexity["shaped"] < 0.95 * perplexity["cooled"]
