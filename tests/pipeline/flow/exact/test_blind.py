"""Blind rollouts have the law of the chain, and the chi-square that says so sees a small error."""

import pytest

from tests.pipeline.flow.exact.chain import enumerate_chain
from tests.pipeline.flow.exact.follows import MANY, SAMPLES, SPACES, TWO_SPACES, assert_all_steps_follow, sample
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@pytest.mark.parametrize(("steps", "exponent", "temperature"), [(1, 1.0, 1.0), (2, 2.0, 0.6), (4, 0.5, 1.7)])
@SPACES
def test_blind(build, space, steps, exponent, temperature):
    teacher, _, table, _ = build(space, steps, exponent=exponent)
    rollout = RolloutConfig(steps=steps, temperature=temperature, seed=3)
    states = sample(teacher, None, space, rollout, ShapingConfig(), "blind", MANY)
    p = enumerate_chain(space, table, steps, exponent=exponent, temperature=temperature)
    assert_all_steps_follow(states, p)


@TWO_SPACES
@pytest.mark.parametrize(("samples", "temperature", "exponent"), [(MANY, 1.07, 1.08), (SAMPLES, 1.12, 1.15)])
def test_the_meter_sees_a_small_error(build, space, samples, temperature, exponent):
    """The chi-square is sharp: a posterior some percent too hot, or rings some percent too rare, and it fails."""
    teacher, _, table, _ = build(space, 2)
    states = sample(teacher, None, space, RolloutConfig(steps=2, seed=3), ShapingConfig(), "blind", samples)
    assert_all_steps_follow(states, enumerate_chain(space, table, 2))
    for wrong in (enumerate_chain(space, table, 2, temperature=temperature), enumerate_chain(space, table, 2, exponent=exponent)):
        with pytest.raises(AssertionError):
            assert_all_steps_follow(states, wrong)
