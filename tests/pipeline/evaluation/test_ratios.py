"""Ratio and entropy estimates against their formulas, the jackknife, and the coverage of their intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import present
from tsdfm.pipeline.evaluation.ratios import Entropy, Ratio


@given(st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 9)), min_size=2, max_size=20), st.integers(1, 5))
def test_ratio_is_the_formula_however_batched(pairs, batch):
    numerator, denominator = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    ratio = Ratio()
    for start in range(0, len(pairs), batch):
        ratio.add(numerator[start : start + batch], denominator[start : start + batch])
    found = ratio.estimate()
    if not denominator.sum():
        assert found is None
        return
    assert found is not None
    mean = numerator.sum() / denominator.sum()
    m = len(pairs)
    error = math.sqrt(m / (m - 1) * ((numerator - mean * denominator) ** 2).sum()) / denominator.sum()
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.standard_error == pytest.approx(error, abs=1e-6)
    assert present(found.high) - present(found.low) == pytest.approx(2 * 1.96 * error, rel=1e-4, abs=1e-5)
    assert found.count == denominator.sum()


def test_equal_counts_give_the_usual_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    ratio = Ratio()
    ratio.add(values, np.ones(50))
    assert present(ratio.estimate()).standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50))


def test_one_trajectory_has_no_error():
    ratio = Ratio()
    ratio.add([3.0], [2.0])
    found = present(ratio.estimate())
    assert (found.mean, found.standard_error, found.low, found.high) == (1.5, None, None, None)


def test_entropy_of_nothing_is_unknown_and_of_one_outcome_is_zero():
    assert Entropy(3).estimate() is None
    entropy = Entropy(3)
    entropy.add([[0, 4, 0], [0, 2, 0]])
    found = present(entropy.estimate())
    assert (found.mean, found.standard_error) == (0.0, 0.0)


def test_entropy_is_the_formula_and_its_error_near_the_jackknife():
    rng = np.random.default_rng(1)
    counts = np.stack([rng.multinomial(rng.integers(5, 30), rng.dirichlet([4, 2, 1, 1])) for _ in range(200)])

    def plug_in(rows):
        p = rows.sum(0) / rows.sum()
        return -sum(q * math.log2(q) for q in p if q)

    entropy = Entropy(4)
    for part in np.array_split(counts, 7):
        entropy.add(part)
    found, m = present(entropy.estimate()), len(counts)
    left_out = np.array([plug_in(np.delete(counts, i, 0)) for i in range(m)])
    jackknife = math.sqrt((m - 1) / m * ((left_out - left_out.mean()) ** 2).sum())
    assert found.mean == pytest.approx(plug_in(counts))
    assert found.standard_error == pytest.approx(jackknife, rel=0.05)


def test_intervals_cover_in_spite_of_dependent_steps():
    """Steps of a trajectory share an offset, and long trajectories are higher: 95 % of intervals hold the true ratio."""
    rng, covered, trials, truth = np.random.default_rng(2), 0, 600, 0.0
    lengths = np.array([1, 2, 3, 8])
    truth = (lengths * lengths / 10).mean() / lengths.mean()
    for _ in range(trials):
        n = rng.choice(lengths, 120)
        s = n * (n / 10 + rng.normal(size=120)) + rng.normal(size=120) * np.sqrt(n)
        ratio = Ratio()
        ratio.add(s, n)
        found = present(ratio.estimate())
        covered += present(found.low) <= truth <= present(found.high)
    assert 0.92 <= covered / trials <= 0.98
