"""MAUVE against closed forms and the authors' package; its interval in a simulation."""

from math import comb

import numpy as np
import pytest

from tsdfm.pipeline.evaluation.measures import mauve as module
from tsdfm.pipeline.evaluation.measures.mauve import FLOOR, area, k_means, mauve, of_counts


def test_the_same_law_has_one_and_laws_that_share_nothing_the_floor():
    p = np.array([0.2, 0.5, 0.3, 0.0])
    assert float(area(p, p)) == pytest.approx(1)
    assert float(area(np.array([0.3, 0.7, 0.0]), np.array([0.0, 0.0, 1.0]))) == pytest.approx(FLOOR, rel=0.05)
    assert 1 / comb(10, 5) == FLOOR


def test_the_floor_is_what_finer_mixtures_go_to(monkeypatch):
    monkeypatch.setattr(module, "MIXTURES", 4001)
    assert float(area(np.array([1.0, 0.0]), np.array([0.0, 1.0]))) == pytest.approx(FLOOR, rel=1e-4)


def test_two_atoms_by_hand(monkeypatch):
    """With one mixture, w = 1/2, the curve is (1, 0), one point, (0, 1): its area is a triangle's and a trapezoid's."""
    monkeypatch.setattr(np, "linspace", lambda *_: np.array([0.5]))
    p, q = np.array([0.9, 0.1]), np.array([0.4, 0.6])
    to_q = 0.4 * np.log(0.4 / 0.65) + 0.6 * np.log(0.6 / 0.35)
    to_p = 0.9 * np.log(0.9 / 0.65) + 0.1 * np.log(0.1 / 0.35)
    x, y = np.exp(-5 * to_q), np.exp(-5 * to_p)
    assert float(area(p, q)) == pytest.approx((1 - x) * y / 2 + x * (y + 1) / 2)


def test_it_is_symmetric_and_many_at_once_are_one_by_one():
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(7), 5), random.dirichlet(np.ones(7), 5)
    np.testing.assert_allclose(area(p, q), area(q, p))
    np.testing.assert_allclose(area(p, q), [float(area(a, b)) for a, b in zip(p, q, strict=True)])


def test_k_means_finds_clusters_that_are_there():
    random = np.random.default_rng(1)
    centres = 20 * random.normal(size=(6, 3))
    truth = random.integers(6, size=300)
    labels = k_means(centres[truth] + random.normal(size=(300, 3)), 6, random)
    assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 6
    np.testing.assert_array_equal(k_means(np.ones((5, 2)), 3, random), np.zeros(5))  # all of them coincide


def test_sets_of_one_law_are_near_one_and_others_are_not():
    random = np.random.default_rng(2)
    first, second = random.normal(size=(2, 400, 24))
    same, clusters = mauve(first, second)
    assert clusters == 40
    assert same.value > 0.97
    assert same.plain < same.value  # which is too low for there being few texts
    far, _ = mauve(first + 4, second)
    assert far.high < 0.05
    between, _ = mauve(first + 0.3, second)
    assert far.high < between.low < between.high < same.low
    assert mauve(first, second)[0] == same  # by the seed


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_the_interval_covers(share):
    """Of histograms of known laws, where the true value is known; bootstrap intervals of 95 % do so a little less often."""
    random = np.random.default_rng(3)
    one, other = random.dirichlet(np.full(25, 2.0), 2)
    other = share * one + (1 - share) * other
    true, covered, errors = float(area(one, other)), 0, []
    for _ in range(60):
        found = of_counts(random.multinomial(250, one), random.multinomial(250, other), random)
        covered += found.low <= true <= found.high
        errors.append((found.value - true, found.plain - true))
    assert covered >= 60 * 0.85
    assert abs(np.mean(errors, 0)[0]) < abs(np.mean(errors, 0)[1])  # and the value is nearer than the plain one


@pytest.mark.slow
def test_it_agrees_with_the_authors_package():
    """Where that is installed. Clusters are drawn at random in either, so values agree as those of two seeds do."""
    theirs = pytest.importorskip("mauve")
    random = np.random.default_rng(4)
    for shift in (0.0, 0.15, 0.4):
        first, second = random.normal(size=(600, 16)) + shift, random.normal(size=(600, 16))
        wanted = theirs.compute_mauve(p_features=first, q_features=second, verbose=False).mauve
        assert mauve(first, second)[0].plain == pytest.approx(wanted, abs=0.08)
