"""Effects by hand: averages over pairs, texts resampled alike, seeds, and trials that have no twin."""

import numpy as np
import pytest

from tsdfm.pipeline.evaluation.effects import JudgedTexts, Ratio, ScoredTexts, effects, perplexity_ratio, ratio_at_equal_entropy
from tsdfm.pipeline.evaluation.judge import Likelihood

TEXTS = 40


def scored(nats, seed=0, steps=8, entropy=5.0, noise=None, **levels):
    """A trial each of whose texts has 10 tokens of `nats`, plus the noise of the text."""
    noise = np.zeros(TEXTS) if noise is None else noise
    judge = Likelihood(10 * (nats + noise), np.full(TEXTS, 10.0))
    return ScoredTexts(levels, seed, steps, 1.0, {"J": judge}, entropy + noise)


def by_level(found, measure="log perplexity (J)"):
    return {(each.factor, each.level): each for each in found if each.measure == measure}


def test_main_effects_of_a_grid_are_averages_over_the_other_factor():
    cells = [scored({"shaped": 4.0, "blind": 5.0}[arm] + 0.1 * (5 - blocks) * (2 if arm == "blind" else 1), arm=arm, blocks=str(blocks))
             for arm in ("shaped", "blind") for blocks in (5, 3)]
    found = by_level(effects(cells, {"arm": "shaped", "blocks": "5"}))
    assert set(found) == {("arm", "blind"), ("blocks", "3")}
    assert found["arm", "blind"].difference == pytest.approx((1.0 + 1.2) / 2)
    assert found["blocks", "3"].difference == pytest.approx((0.2 + 0.4) / 2)
    assert {each.pairs for each in found.values()} == {2}


def test_texts_are_paired_so_their_common_noise_is_no_uncertainty():
    noise = np.random.default_rng(5).normal(size=TEXTS)
    [paired] = by_level(effects([scored(4, noise=noise, a="0"), scored(5, noise=noise, a="1")], {"a": "0"})).values()
    assert (paired.low, paired.difference, paired.high) == pytest.approx((1, 1, 1))
    [apart] = by_level(effects([scored(4, noise=noise, a="0"), scored(5, noise=-noise, a="1")], {"a": "0"})).values()
    expected = 2 * noise.std() / np.sqrt(TEXTS)  # the standard error of the mean difference
    assert (apart.high - apart.low) / 3.92 == pytest.approx(expected, rel=0.15)
    assert apart.low < apart.difference < apart.high


def test_seeds_widen_the_interval_and_are_averaged():
    cells = [scored(4, seed=seed, a="0") for seed in range(3)] + [scored(5 + shift, seed=seed, a="1") for seed, shift in enumerate((0, .3, .6))]
    [found] = by_level(effects(cells, {"a": "0"})).values()
    assert found.difference == pytest.approx(1.3)
    assert (found.low, found.high) == pytest.approx((1.0, 1.6))  # all draws of the least, of the greatest: 1/27 each
    assert found.pairs == 3


def test_trials_without_a_twin_count_for_nothing_and_steps_stand_apart():
    cells = [scored(4, a="0", b="0"), scored(5, a="1", b="0"), scored(9, a="1", b="1"), scored(2, steps=4, a="0", b="0")]
    found = effects(cells, {"a": "0", "b": "0"})
    wanted: dict[object, object] = {
        ("a", 8, "log perplexity (J)"): (pytest.approx(1), 1), ("b", 8, "log perplexity (J)"): (pytest.approx(4), 1),
        ("a", 8, "entropy"): (pytest.approx(0), 1), ("b", 8, "entropy"): (pytest.approx(0), 1)}
    assert {(each.factor, each.steps, each.measure): (each.difference, each.pairs) for each in found} == wanted


def test_it_is_a_function_of_the_scores():
    cells = [scored(4, noise=np.random.default_rng(each).normal(size=TEXTS), a=str(each)) for each in range(3)]
    assert effects(cells, {"a": "0"}) == effects(cells, {"a": "0"})


def judged(nats, noise, entropy=5.0):
    """Texts of 10 tokens of `nats` each, plus the noise of the text, which is in its entropy, too."""
    return JudgedTexts(Likelihood(10 * (nats + noise), np.full(TEXTS, 10.0)), entropy + 0.1 * noise)


def test_a_ratio_is_of_pairs_so_their_common_noise_is_no_uncertainty():
    noise = np.random.default_rng(5).normal(size=TEXTS)
    noise -= noise.mean()
    paired = perplexity_ratio(judged(4.9, noise), judged(5.0, noise))
    assert (paired.low, paired.value, paired.high) == pytest.approx((np.exp(-0.1),) * 3)
    assert paired.verdict == "lower"
    apart = perplexity_ratio(judged(4.9, noise), judged(5.0, -noise))
    assert apart.low < 1 < apart.high
    assert apart.verdict == "not told apart"
    assert np.log(apart.high / apart.low) / 3.92 == pytest.approx(2 * noise.std() / np.sqrt(TEXTS), rel=0.15)
    assert perplexity_ratio(judged(5.0, noise), judged(4.9, noise)).verdict == "higher"


@pytest.mark.parametrize(("low", "high", "verdict"), [
    (0.8, 0.999, "lower"), (0.8, 1.0, "not told apart"), (1.0, 1.2, "not told apart"), (1.001, 1.2, "higher")])
def test_a_verdict_needs_an_interval_without_one(low, high, verdict):
    assert Ratio((low * high) ** 0.5, low, high).verdict == verdict


def test_a_ratio_at_equal_entropy_reads_the_curve_between_temperatures():
    noise = 0.1 * np.random.default_rng(5).normal(size=TEXTS)
    curve = [judged(5.4, noise, 5.2), judged(5.0, noise, 4.8), judged(5.8, noise, 5.6)]  # in any order
    found = ratio_at_equal_entropy(judged(4.6, noise, 4.9), curve)
    assert found is not None
    assert (found.low, found.value, found.high) == pytest.approx((np.exp(4.6 - 5.1),) * 3)


def test_a_curve_that_does_not_reach_the_entropy_is_not_extrapolated():
    noise = np.random.default_rng(5).normal(size=TEXTS)
    curve = [judged(5.0, noise, 4.8), judged(5.4, noise, 5.2)]
    for entropy in (4.7, 5.3):
        assert ratio_at_equal_entropy(judged(4.6, noise, entropy), curve) is None
    hardly = judged(4.6, -noise, 5.199)  # the curve reaches the entropy itself, but not that of half of the resamples
    assert ratio_at_equal_entropy(hardly, curve) is None
