"""Clocks that are drawn together: their law, blind and shaped, and that it is not that of independent ones."""

import itertools

import numpy as np
import pytest
import torch

from tests.pipeline.flow.exact.chain import Choice, enumerate_chain, enumerate_patterns, ring
from tests.pipeline.flow.exact.follows import SPACES, TWO_SPACES, UNIFORM, assert_all_steps_follow, sample
from tests.pipeline.flow.exact.patterns import even_patterns, spaced_patterns
from tests.support import at_once
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.clocks import draw_rings
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@SPACES
@pytest.mark.parametrize("block", [1, 7, 3 * 5 * 4, 3 * 5 * 4 + 1, 1 << 22])
def test_rings_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch, space, block):
    """Against one coin per (trajectory, step, position); with the mask source the first success of each position."""
    at_once(monkeypatch, ring_numbers=block)
    path = MixturePath(2.0, space.vocab, space.mask)
    noise = Noise(3, torch.arange(5))
    rings = draw_rings(path, noise, RolloutConfig(steps=10).times, space.length).numpy()
    assert rings.shape == (5, 10, space.length)
    wanted = np.zeros(rings.shape, bool)
    for b, s in itertools.product(range(5), range(10)):
        coins = noise.rings(torch.tensor([b]), torch.tensor([s]), space.length)[0].numpy() < ring(s / 10, (s + 1) / 10, 2.0)
        wanted[b, s] = coins & ~wanted[b, :s].any(0) if space.mask is not None else coins
    np.testing.assert_array_equal(rings, wanted)
    assert rings.any(1).all()


@pytest.mark.parametrize(("steps", "exponent"), [(1, 1.0), (2, 2.0), (4, 1.0), (4, 0.5)])
@TWO_SPACES
def test_spaced_clocks(build, space, steps, exponent):
    """Blind rollouts follow the enumeration of every pattern of rings, and not that of independent clocks."""
    teacher, _, table, _ = build(space, steps, exponent=exponent)
    rollout = RolloutConfig(steps=steps, seed=15, clocks="spaced")
    states = sample(teacher, None, space, rollout, ShapingConfig(), "blind")
    patterns = spaced_patterns(space, steps, exponent)
    assert sum(weight for weight, _ in patterns) == pytest.approx(1)
    for s in range(steps):  # the law of one clock is the path's
        share = [sum(weight for weight, rings in patterns if i in rings[s]) for i in range(3)]
        wanted = ((s + 1) / steps) ** exponent - (s / steps) ** exponent if space.mask is not None else ring(s / steps, (s + 1) / steps, exponent)
        np.testing.assert_allclose(share, wanted)
    assert_all_steps_follow(states, enumerate_patterns(space, table, patterns))
    if steps > 1:
        with pytest.raises(AssertionError):
            assert_all_steps_follow(states, enumerate_chain(space, table, steps, exponent=exponent))


def test_even_clocks(build):
    teacher, _, table, _ = build(UNIFORM, 4)
    states = sample(teacher, None, UNIFORM, RolloutConfig(steps=4, seed=16, clocks="even"), ShapingConfig(), "blind")
    assert_all_steps_follow(states, enumerate_patterns(UNIFORM, table, even_patterns(UNIFORM, 4, 1.0)))


@TWO_SPACES
def test_shaped_on_spaced_clocks(build, space):
    teacher, compass, table, energy = build(space, 2)
    shaping = ShapingConfig(candidates=3, select="resample", beta=2.0)
    states = sample(teacher, compass, space, RolloutConfig(steps=2, seed=17, clocks="spaced"), shaping, "shaped")
    choice = Choice(energy, 3, "resample", 2.0, 1.0)
    assert_all_steps_follow(states, enumerate_patterns(space, table, spaced_patterns(space, 2, 1.0), choice))
