"""Rollouts around fixed positions: the law of what is written, for every set of them."""

import itertools

import numpy as np
import pytest
import torch

from tests.pipeline.flow.exact.chain import Choice, Space, enumerate_chain, enumerate_patterns, rk4_step
from tests.pipeline.flow.exact.follows import MASK3, TWO_SPACES, assert_all_steps_follow, equal, replay
from tests.pipeline.flow.exact.patterns import even_patterns, spaced_patterns
from tests.support import present
from tsdfm.pipeline.flow.rollout import Begun, roll_out, roll_out_begun
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


def fixed_patterns(space):
    """Every set of fixed positions but all, in each of which another token is first."""
    sets = [places for size in range(space.length) for places in itertools.combinations(range(space.length), size)]
    tokens = space.tokens
    return [tuple((i, tokens[(number + i) % len(tokens)]) for i in places) for number, places in enumerate(sets)]


def sample_given(models, space, rollout, shaping, samples):
    """For each of `fixed_patterns`, which take turns in every batch: [N + 1, samples] as `sample`."""
    patterns = fixed_patterns(space)
    rows = torch.full((len(patterns), space.length), -1)
    for row, pattern in zip(rows, patterns, strict=True):
        for position, token in pattern:
            row[position] = token
    found = []
    for start in range(0, samples * len(patterns), 3500):
        ids = torch.arange(start, start + 3500)
        begun = Begun(ids.tolist(), rows[ids % len(patterns)])
        logs = roll_out_begun(models[0], models[1], rollout, shaping, begun, "shaped" if models[1] else "blind")
        found.append(replay(logs, space, rollout.steps))
    indices = np.concatenate(found, 1)
    return [(space.given(pattern), indices[:, number :: len(patterns)]) for number, pattern in enumerate(patterns)]


@pytest.mark.parametrize(("steps", "exponent"), [(1, 1.0), (2, 2.0), (4, 0.5)])
@TWO_SPACES
def test_fixed_positions(build, space, steps, exponent):
    """Every set of them, in one batch. They hold their tokens from t = 0 on, the teacher sees them, and the others' clocks are the path's.

    Of the mask source that is the chain itself, from a later state on; of the uniform one a chain in which these tokens are
    never noise, with a teacher that can't know it: see `test_texts_given_fixed_positions`.
    """
    teacher, _, table, _ = build(space, steps, exponent=exponent)
    for given, states in sample_given((teacher, None), space, RolloutConfig(steps=steps, seed=21, temperature=0.8), ShapingConfig(), 3500):
        assert_all_steps_follow(states, enumerate_chain(given, table, steps, exponent=exponent, temperature=0.8))


@pytest.mark.parametrize("clocks", ["spaced", "even"])
@TWO_SPACES
def test_fixed_positions_on_clocks_drawn_together(build, space, clocks):
    if clocks == "even" and space.mask is not None:
        return  # there are none
    teacher, _, table, _ = build(space, 4)
    for given, states in sample_given((teacher, None), space, RolloutConfig(steps=4, seed=22, clocks=clocks), ShapingConfig(), 3500):
        patterns = spaced_patterns(given, 4, 1.0) if clocks == "spaced" else even_patterns(given, 4, 1.0)
        assert_all_steps_follow(states, enumerate_patterns(given, table, patterns))


@pytest.mark.parametrize("steps", [1, 2, 4])
@TWO_SPACES
def test_shaped_around_fixed_positions(build, space, steps):
    """Every set of them, under the rule of chance; the compass scores the whole state."""
    teacher, compass, table, energy = build(space, steps)
    shaping = ShapingConfig(candidates=2, select="resample", beta=2.0)
    choice = Choice(energy, 2, "resample", 2.0, 1.0)
    for given, states in sample_given((teacher, compass), space, RolloutConfig(steps=steps, seed=28), shaping, 3500):
        assert_all_steps_follow(states, enumerate_chain(given, table, steps, choice))


@TWO_SPACES
def test_the_best_around_fixed_positions(build, space):
    teacher, compass, table, energy = build(space, 2)
    choice = Choice(energy, 3, "argmin", 1.0, 0.0)
    for given, states in sample_given((teacher, compass), space, RolloutConfig(steps=2, seed=26), ShapingConfig(candidates=3), 3500):
        assert_all_steps_follow(states, enumerate_chain(given, table, 2, choice))


@pytest.mark.parametrize("chained", [False, True], ids=["rk4", "rk4_chained"])
@pytest.mark.parametrize("space", [Space("mask", 3, 2, 2), Space("uniform", 3, None, 2)], ids=["mask", "uniform"])
def test_rk4_around_fixed_positions(build, space, chained):
    """They ring in no inner stage either."""
    teacher, _, table, _ = build(space, 2)
    rollout = RolloutConfig(steps=2, seed=24, solver="rk4_chained" if chained else "rk4")
    for given, states in sample_given((teacher, None), space, rollout, ShapingConfig(), 3500):
        assert_all_steps_follow(states, enumerate_chain(given, table, 2, step=rk4_step, chained=chained))


@TWO_SPACES
@pytest.mark.parametrize("clocks", ["independent", "spaced"])
def test_nothing_fixed_is_as_ever(build, space, clocks):
    """To the bit; only the log of masks has a source."""
    teacher, compass, _, _ = build(space, 4)
    rollout, shaping = RolloutConfig(steps=4, seed=25, clocks=clocks), ShapingConfig(candidates=3)
    plain = roll_out(teacher, compass, rollout, shaping, range(50), "shaped")
    begun = roll_out_begun(teacher, compass, rollout, shaping, Begun(range(50), torch.full((50, 3), -1)), "shaped")
    for a, b in zip(plain, begun, strict=True):
        equal(a, b, but=("source_tokens", "fixed_positions"))
        np.testing.assert_array_equal(a.source(space.mask), b.source(space.mask))
        assert (a.fixed_positions, present(b.fixed_positions).tolist()) == (None, [])


def test_patterns_that_cannot_be(build):
    teacher, _, _, _ = build(MASK3, 2)
    for fixed in (torch.full((2, 3), 1), torch.tensor([[1, 1, 1], [1, 1, -1]]), torch.full((1, 3), -1), torch.full((2, 2), -1)):
        with pytest.raises(ValueError, match="fixed positions"):
            roll_out_begun(teacher, None, RolloutConfig(steps=2), ShapingConfig(), Begun(range(2), fixed), "blind")
