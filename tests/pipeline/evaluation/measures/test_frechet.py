"""The Fréchet distance against closed forms; its interval in a simulation."""

import numpy as np
import pytest

from tsdfm.pipeline.evaluation.measures.frechet import Directions, frechet, gaussian_distance


def test_of_gaussians_along_the_axes_it_is_known():
    first, second = np.diag([4.0, 1.0, 0.0]), np.diag([1.0, 9.0, 0.25])
    assert gaussian_distance(np.array([1.0, 0.0, 2.0]), first, second) == pytest.approx(5 + 1 + 4 + 0.25)
    assert gaussian_distance(np.zeros(3), first, first) == pytest.approx(0, abs=1e-9)


def test_of_gaussians_that_are_turned_it_is_that_of_the_product():
    random = np.random.default_rng(0)
    first, second = (a @ a.T for a in random.normal(size=(2, 5, 5)))
    shared = np.sqrt(np.linalg.eigvals(first @ second).real).sum()
    wanted = np.trace(first) + np.trace(second) - 2 * shared
    assert gaussian_distance(np.zeros(5), first, second) == pytest.approx(wanted)
    assert gaussian_distance(np.zeros(5), second, first) == pytest.approx(wanted)


def test_of_many_directions_the_main_ones_are_whole_and_the_rest_is_not_lost():
    """60 directions of falling variance; a shift in the last one is seen as well as one in the first."""
    random, scale = np.random.default_rng(1), 1 / np.sqrt(np.arange(1, 61))
    real, others = (random.normal(size=(600, 60)) * scale for _ in range(2))
    directions = Directions.of(np.concatenate([real, others]))
    variance = (scale**2).sum()
    for axis in (0, 59):
        moved = random.normal(size=(600, 60)) * scale
        moved[:, axis] += 1.0
        assert frechet(moved, real, directions).value == pytest.approx(1 / variance, rel=0.25)
    wider = 1.5 * random.normal(size=(600, 60)) * scale
    assert frechet(wider, real, directions).value == pytest.approx(0.25, rel=0.2)
    assert frechet(others, real, directions).high < 0.04
    assert frechet(7 * others, 7 * real, Directions.of(7 * real)).value == pytest.approx(
        frechet(others, real, Directions.of(real)).value, abs=1e-9)  # whatever the unit of the features


def test_texts_that_are_all_the_same_have_a_distance():
    found = frechet(np.ones((5, 3)), np.ones((5, 3)), Directions.of(np.ones((5, 3))))
    assert (found.value, found.low, found.high) == (0, 0, 0)


@pytest.mark.slow
@pytest.mark.release
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.2, 1.3)])
def test_the_interval_covers(shift, scale):
    random, size = np.random.default_rng(2), 1 / np.sqrt(np.arange(1, 193))
    true, covered = shift**2 + (scale - 1) ** 2, 0
    for _ in range(40):
        moved, real, own = (random.normal(size=(250, 192)) * size for _ in range(3))
        found = frechet(scale * moved + shift * size, real, Directions.of(np.concatenate([own, real])))
        covered += found.low <= true <= found.high
        assert found.value < found.plain
    assert covered >= 40 * 0.85
