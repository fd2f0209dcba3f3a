"""Identities of the mixture path: endpoints, inverse, ring probabilities that compose, frequencies of the noising."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare

from tsdfm.pipeline.flow.mixture_path import MixturePath, stratified_times
from tsdfm.schemas.generate import RolloutConfig
from tsdfm.schemas.model import DenoiserConfig

EXPONENTS = pytest.mark.parametrize("n", [0.5, 1.0, 1.5, 2.0, 3.0])
unit = st.floats(0, 1, allow_subnormal=False)
exponent = st.floats(0.25, 5)


def path(n=1.0, mask_id=None, vocab=7):
    return MixturePath(n, vocab, mask_id)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_a_path_is_that_of_its_model():
    shape = {"hidden_size": 8, "n_heads": 1, "n_blocks": 1, "vocab_size": 9, "length": 4}
    masked = MixturePath.of(DenoiserConfig(**shape, source="mask", mask_id=8, kappa_exponent=2.0))
    assert masked == MixturePath(2.0, 9, 8)
    assert MixturePath.of(DenoiserConfig(**shape, source="uniform")) == MixturePath(1.0, 9, None)


@EXPONENTS
def test_endpoints_of_the_schedule(n):
    assert path(n).kappa(f64(0, 1)).tolist() == [0, 1]
    assert path(n).kappa_inverse(f64(0, 1)).tolist() == [0, 1]


@given(t=unit, n=exponent)
def test_kappa_inverse_undoes_kappa(t, n):
    # at the far end of a flat schedule the relative error of t is n times that of kappa
    kappa = path(n).kappa(f64(t))
    assert kappa.item() == pytest.approx(t**n, rel=1e-12)
    if kappa > 1e-290:
        assert path(n).kappa_inverse(kappa).item() == pytest.approx(t, rel=1e-9)


@EXPONENTS
def test_the_derivative_is_that_of_kappa(n):
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64).requires_grad_()
    path(n).kappa(t).sum().backward()
    torch.testing.assert_close(path(n).kappa_derivative(t.detach()), t.grad)


@given(times=st.tuples(unit, unit, unit), n=exponent)
def test_surviving_two_steps_is_surviving_the_joint_step(times, n):
    """(1 - g(a, b)) (1 - g(b, c)) = 1 - g(a, c)."""
    a, b, c = sorted(times)
    ring = path(n).ring_probability
    survive = [1 - ring(f64(x), f64(y)).item() for x, y in ((a, b), (b, c), (a, c))]
    assert survive[0] * survive[1] == pytest.approx(survive[2], abs=1e-9)


@given(times=st.tuples(unit, unit), n=exponent)
def test_ring_probability_is_its_definition(times, n):
    t, t_next = sorted(times)
    g = path(n).ring_probability(f64(t), f64(t_next)).item()
    assert 0 <= g <= 1
    if t_next < 1:
        assert g == pytest.approx(1 - (1 - t_next**n) / (1 - t**n), abs=1e-9)
    else:
        assert g == 1


@EXPONENTS
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 64, 1000, 65536])
def test_everything_rings_by_the_last_step(n, steps):
    """g = 1 exactly on the step that ends at 1, and the survival of all steps up to t is 1 - kappa_t."""
    grid = torch.tensor(RolloutConfig(steps=steps).times, dtype=torch.float64)
    g = path(n).ring_probability(grid[:-1], grid[1:])
    assert g.dtype == torch.float64
    assert g[-1] == 1
    assert ((g >= 0) & (g <= 1)).all()
    torch.testing.assert_close((1 - g).cumprod(0), 1 - grid[1:] ** n, rtol=1e-8, atol=1e-12)


@EXPONENTS
def test_one_step_is_certain(n):
    assert path(n).ring_probability(f64(0), f64(1)).item() == 1


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 49, 64, 65536])
def test_the_grid(steps):
    grid = torch.tensor(RolloutConfig(steps=steps).times, dtype=torch.float64)
    assert len(grid) == steps + 1
    assert grid.dtype == torch.float64
    assert grid.tolist() == [s / steps for s in range(steps + 1)]
    assert (grid[0].item(), grid[-1].item()) == (0, 1)


@pytest.mark.parametrize("mask_id", [None, 6, 2])
def test_the_path_ends_at_the_data_and_starts_at_the_source(mask_id):
    x_1 = torch.randint(6, (50, 30), generator=torch.Generator().manual_seed(0))
    x_1[x_1 == mask_id] = 0
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(path(1.5, mask_id).sample(x_1, torch.ones(50), generator), x_1)
    x_0 = path(1.5, mask_id).sample(x_1, torch.zeros(50), generator)
    if mask_id is None:
        assert chisquare(torch.bincount(x_0.flatten(), minlength=7).numpy()).pvalue > 1e-4
    else:
        assert (x_0 == mask_id).all()


@pytest.mark.parametrize("mask_id", [None, 6])
@EXPONENTS
def test_noised_share_is_one_minus_kappa(n, mask_id):
    """Of 100,000 positions at each of three times; a uniform source hits the token itself once in V."""
    generator = torch.Generator().manual_seed(2)
    times = torch.tensor([0.2, 0.5, 0.9])
    x_1 = torch.full((3, 100_000), 3)
    x_t = path(n, mask_id).sample(x_1, times, generator)
    assert x_t.dtype == torch.int64
    for row, t in enumerate(times.tolist()):
        kept = t**n if mask_id is not None else t**n + (1 - t**n) / 7
        assert binomtest(int((x_t[row] == 3).sum()), 100_000, kept).pvalue > 1e-4
        noise = x_t[row][x_t[row] != 3]
        if mask_id is not None:
            assert (noise == 6).all()
        else:
            assert chisquare(torch.bincount(noise, minlength=7)[[0, 1, 2, 4, 5, 6]].numpy()).pvalue > 1e-4


def test_noising_is_independent_of_the_rows():
    """Every row and position has its own coin: the joint counts of two positions are those of independence."""
    x_t = path(1.0, 6).sample(torch.zeros(40_000, 2, dtype=torch.long), torch.full((40_000,), 0.5),
                              torch.Generator().manual_seed(3))
    masked = (x_t == 6).long()
    for pairs in (masked[:, 0] * 2 + masked[:, 1], masked[:-1, 0] * 2 + masked[1:, 0]):
        assert chisquare(torch.bincount(pairs, minlength=4).numpy()).pvalue > 1e-4


@given(count=st.integers(1, 200), seed=st.integers(0, 2**20))
def test_one_time_in_each_stratum(count, seed):
    times = stratified_times(count, torch.Generator().manual_seed(seed))
    assert times.shape == (count,)
    strata = (times.sort().values.double() * count - torch.arange(count))
    assert ((strata >= -1e-4) & (strata <= 1 + 1e-4)).all()


def test_strata_come_in_random_order():
    """Row 0 is not always the earliest: its stratum is uniform over all of them."""
    generator = torch.Generator().manual_seed(4)
    first = torch.tensor([math.floor(float(stratified_times(8, generator)[0]) * 8) for _ in range(8000)])
    assert chisquare(torch.bincount(first, minlength=8).numpy()).pvalue > 1e-4
