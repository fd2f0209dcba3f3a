"""The RK-4 solvers: their laws, and where they are the plain one."""

import numpy as np
import pytest

from tests.pipeline.flow.exact.chain import Choice, Space, enumerate_chain, rk4_step
from tests.pipeline.flow.exact.follows import BATCH, TWO_SPACES, assert_all_steps_follow, sample
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@TWO_SPACES
def test_rk4_of_a_posterior_that_ignores_the_state(build, space):
    """k2 and k3 are the posterior at the middle, k4 that at the end: Simpson's rule, whatever was drawn in between."""
    teacher, _, table, _ = build(space, 2, depends_on_state=False)
    states = sample(teacher, None, space, RolloutConfig(steps=2, seed=8, solver="rk4"), ShapingConfig(), "blind")
    averaged = np.array(table)
    for s in range(2):
        averaged[2 * s] = (table[2 * s] + 4 * table[2 * s + 1] + table[2 * s + 2]) / 6
    assert_all_steps_follow(states, enumerate_chain(space, averaged, 2))


@pytest.mark.parametrize("solver", ["rk4", "rk4_chained"])
@TWO_SPACES
def test_rk4_equals_euler_if_neither_state_nor_time_matter(build, space, solver):
    teacher, _, table, _ = build(space, 3, depends_on_state=False)
    teacher.hidden_table[:] = teacher.hidden_table[:1].clone()
    states = sample(teacher, None, space, RolloutConfig(steps=3, seed=8, solver=solver), ShapingConfig(), "blind")
    p = enumerate_chain(space, np.repeat(table[:1], len(table), 0), 3)
    assert_all_steps_follow(states, p)
    # The rings and the tokens of the step itself don't depend on the solver, so even the trajectories are equal.
    euler = sample(teacher, None, space, RolloutConfig(steps=3, seed=8), ShapingConfig(), "blind", BATCH)
    same = (euler == states[:, :BATCH]).all(0)
    assert same.mean() > 0.999  # the average of equal hidden states may differ in its last bit


@pytest.mark.parametrize("chained", [False, True], ids=["rk4", "rk4_chained"])
@pytest.mark.parametrize(("candidates", "space"), [
    (1, Space("mask", 3, 2, 2)), (2, Space("mask", 3, 2, 2)), (1, Space("uniform", 3, None, 2)), (2, Space("uniform", 2, None, 2)),
    pytest.param(2, Space("uniform", 3, None, 2), marks=pytest.mark.slow),
], ids=["1-mask", "2-mask", "1-uniform", "2-uniform of two tokens", "2-uniform"])
def test_rk4_enumerated(build, space, chained, candidates):
    """Two positions, so that the sum over both midpoints and the end state is small; blind, and shaped in every stage."""
    steps = 2
    teacher, compass, table, energy = build(space, steps, exponent=1.5)
    shaping = ShapingConfig(candidates=candidates, select="resample", beta=2.0)
    rollout = RolloutConfig(steps=steps, seed=9, solver="rk4_chained" if chained else "rk4")
    states = sample(teacher, compass, space, rollout, shaping, "shaped")
    choice = Choice(energy, candidates, "resample", 2.0, 1.0) if candidates > 1 else None
    p = enumerate_chain(space, table, steps, choice, exponent=1.5, step=rk4_step, chained=chained)
    assert_all_steps_follow(states, p)
