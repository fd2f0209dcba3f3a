"""What a log says, to the bit: arms that share their noise, batches that don't matter, events, top-k, forward passes."""

import numpy as np
import pytest

from tests.pipeline.flow.exact.chain import posterior
from tests.pipeline.flow.exact.follows import SPACES, TWO_SPACES, UNIFORM, equal
from tests.support import present
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@SPACES
@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_one_candidate_equals_blind_exactly(build, space, solver):
    teacher, compass, _, _ = build(space, 4)
    rollout = RolloutConfig(steps=4, seed=10, solver=solver, top_k=2)
    blind = roll_out(teacher, compass, rollout, ShapingConfig(candidates=5), range(300), "blind")
    shaped = roll_out(teacher, compass, rollout, ShapingConfig(candidates=1), range(300), "shaped")
    for a, b in zip(blind, shaped, strict=True):
        equal(a, b, but=("arm",))
        assert (a.arm, b.arm) == ("blind", "shaped")


@SPACES
@pytest.mark.parametrize("select", ["argmin", "resample"])
def test_arms_are_paired(build, space, select):
    """Same rings on both arms; and while nothing has been chosen differently, the blind jump is candidate 0."""
    teacher, compass, _, _ = build(space, 4)
    rollout, shaping = RolloutConfig(steps=4, seed=11), ShapingConfig(candidates=3, select=select)
    blind = roll_out(teacher, compass, rollout, shaping, range(2000), "blind")
    shaped = roll_out(teacher, compass, rollout, shaping, range(2000), "shaped")
    compared = parted = 0
    for a, b in zip(blind, shaped, strict=True):
        if space.mask is None:
            np.testing.assert_array_equal(a.source_tokens, b.source_tokens)
        np.testing.assert_array_equal(a.event_step, b.event_step)
        np.testing.assert_array_equal(a.event_position, b.event_position)
        for step in range(4):
            here = a.event_step == step
            np.testing.assert_array_equal(a.event_token[here], b.event_candidates[here, 0])
            compared += here.sum()
            if (a.event_token[here] != b.event_token[here]).any():
                parted += 1
                break
    assert compared > 4000
    assert 300 < parted < 2000


@TWO_SPACES
@pytest.mark.parametrize("arm", ["blind", "shaped"])
@pytest.mark.parametrize("solver", ["euler", "rk4", "rk4_chained"])
def test_a_log_does_not_depend_on_the_batch(build, space, arm, solver):
    """Together, alone, in another order, and in the company of others."""
    teacher, compass, _, _ = build(space, 5)
    rollout = RolloutConfig(steps=5, seed=12, solver=solver, top_k=1)
    shaping = ShapingConfig(candidates=3, select="resample", tau=0.2)

    def run(ids):
        return roll_out(teacher, compass, rollout, shaping, ids, arm)

    together = dict(zip(range(40), run(range(40)), strict=True))
    for number, log in zip([7, 39, 0, 7], run([7, 39, 0, 7]), strict=True):
        equal(log, together[number])
    for number in range(12):
        equal(run([number])[0], together[number])
    for log in run([2**31 - 1, *range(30, 40)])[1:]:
        equal(log, together[log.trajectory_id])


def test_seed_and_id_are_both_keys(build):
    teacher, _, _, _ = build(UNIFORM, 4)

    def run(seed, ids):
        return [(*present(log.source_tokens), *log.tokens, *log.event_step)
                for log in roll_out(teacher, None, RolloutConfig(steps=4, seed=seed), ShapingConfig(), ids, "blind")]

    assert run(1, range(50)) == run(1, range(50))
    assert run(1, range(50)) != run(2, range(50))
    assert run(1, range(50)) != run(1, range(50, 100))
    assert run(2**32 - 1, range(50)) != run(0, range(50))


@SPACES
@pytest.mark.parametrize(("solver", "stages"), [("euler", 1), ("rk4", 4)])
def test_forward_passes(build, space, solver, stages):
    """A trajectory costs one pass (four with RK-4) per step at which one of its clocks rings, and the batch no more calls
    than its busiest trajectory has such steps."""
    teacher, _, _, _ = build(space, 16)
    logs = roll_out(teacher, None, RolloutConfig(steps=16, seed=13, solver=solver), ShapingConfig(), range(200), "blind")
    active = [len(np.unique(log.event_step)) for log in logs]
    assert max(active) <= min(16, max(len(log.event_step) for log in logs))
    assert sum(len(x) for x, _ in teacher.calls) == stages * sum(active)
    assert len(teacher.calls) == stages * max(active)
    if space.mask is not None:
        assert max(active) <= space.length


def test_the_teacher_is_asked_at_the_start_of_the_step(build):
    """Euler: (x_t, t) of every call is the state before the step and its time s/N."""
    teacher, _, _, _ = build(UNIFORM, 8)
    log = roll_out(teacher, None, RolloutConfig(steps=8, seed=14), ShapingConfig(), [5], "blind")[0]
    steps = np.unique(log.event_step)
    assert len(teacher.calls) == len(steps)
    for (x, t), step in zip(teacher.calls, steps, strict=True):
        assert float(t[0]) == step / 8
        np.testing.assert_array_equal(x[0].numpy(), log.state_after(int(step) - 1, None))


@SPACES
def test_events_of_the_log(build, space):
    """Sorted, replayable, and with the mask source one event per position; energies are those of the candidates' states."""
    teacher, compass, _, energy = build(space, 6)
    rollout, shaping = RolloutConfig(steps=6, seed=15, top_k=2), ShapingConfig(candidates=3, tau=0.3)
    for log in roll_out(teacher, compass, rollout, shaping, range(300), "shaped"):
        order = log.event_step.astype(int) * space.length + log.event_position
        assert (np.diff(order) > 0).all()
        np.testing.assert_array_equal(log.state_after(5, space.mask), log.tokens)
        if space.mask is not None:
            assert sorted(log.event_position.tolist()) == [0, 1, 2]
            assert space.mask not in log.tokens
            assert space.mask not in log.event_candidates
        assert log.final_energy == energy[-1, space.index(log.tokens)]
        for slot, step in enumerate(range(2, 6)):
            here = log.event_step == step
            sets = log.event_candidates[here]
            if not here.any() or (sets == sets[:, :1]).all():
                assert np.isnan(log.step_energy[slot]).all()
                assert log.step_choice[slot] == 0
                continue
            for k in range(3):
                state = log.state_after(step - 1, space.mask)
                state[log.event_position[here]] = sets[:, k]
                assert log.step_energy[slot, k] == np.float32(energy[2 * (step + 1), space.index(state)])
            assert log.step_choice[slot] == log.step_energy[slot].argmin()
            np.testing.assert_array_equal(log.event_token[here], sets[:, log.step_choice[slot]])


@TWO_SPACES
def test_top_k_is_the_posterior_at_the_jump(build, space):
    teacher, _, table, _ = build(space, 4)
    rollout = RolloutConfig(steps=4, seed=16, top_k=2, temperature=0.7)
    for log in roll_out(teacher, None, rollout, ShapingConfig(), range(100), "blind"):
        for event in range(len(log.event_step)):
            step, position = int(log.event_step[event]), int(log.event_position[event])
            state = log.state_after(step - 1, space.mask)
            p = posterior(table[2 * step, space.index(state), position], space, 0.7)
            best = np.argsort(-p)[:2]
            np.testing.assert_array_equal(log.event_topk_ids[event], best)
            np.testing.assert_allclose(log.event_topk_logprobs[event], np.log(p[best]), atol=5e-3)
