"""Shaped rollouts, whole candidates chosen: the law of the choice, and which steps it is made at."""

import numpy as np
import pytest

from tests.pipeline.flow.exact.chain import Choice, enumerate_chain
from tests.pipeline.flow.exact.follows import BATCH, MASK3, SAMPLES, TWO_SPACES, UNIFORM, assert_all_steps_follow, sample
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


@TWO_SPACES
def test_shaped_with_one_candidate_is_blind(build, space):
    teacher, compass, table, _ = build(space, 4)
    states = sample(teacher, compass, space, RolloutConfig(steps=4, seed=4), ShapingConfig(candidates=1), "shaped")
    assert compass.calls == SAMPLES // BATCH  # the final energies, and nothing else
    assert_all_steps_follow(states, enumerate_chain(space, table, 4))


@pytest.mark.parametrize(("steps", "candidates", "form", "beta"), [
    (1, 2, "plain", 1.0), (2, 3, "residual", 2.0), (4, 3, "plain", 2.0), (4, 2, None, 1.0),
])
@TWO_SPACES
def test_resample(build, space, steps, candidates, form, beta):
    """P(choose k | K candidates) = softmax(-beta E)_k; `form` None is the residual one, E + log q / L."""
    teacher, compass, table, energy = build(space, steps, exponent=1.5)
    shaping = ShapingConfig(candidates=candidates, select="resample", beta=beta, form=form)
    states = sample(teacher, compass, space, RolloutConfig(steps=steps, seed=5, temperature=0.8), shaping, "shaped")
    choice = Choice(energy, candidates, "resample", beta, 0.0 if form == "plain" else 1.0)
    p = enumerate_chain(space, table, steps, choice, exponent=1.5, temperature=0.8)
    assert_all_steps_follow(states, p)
    with pytest.raises(AssertionError):  # and it is told apart from the blind chain
        assert_all_steps_follow(states, enumerate_chain(space, table, steps, exponent=1.5, temperature=0.8))


@TWO_SPACES
def test_choices_are_calibrated(build, space):
    """The score test of beta on the logged energies: sum of E(chosen) against its mean and variance under softmax(-beta E)."""
    teacher, compass, _, _ = build(space, 4)
    shaping = ShapingConfig(candidates=3, select="resample", beta=2.0)
    logs = roll_out(teacher, compass, RolloutConfig(steps=4, seed=5), shaping, range(20_000), "shaped")
    energy, choice = (np.concatenate([getattr(log, f"step_{name}") for log in logs]) for name in ("energy", "choice"))
    scored = np.isfinite(energy[:, 0])
    energy, choice = energy[scored].astype(float), choice[scored].astype(int)
    assert len(energy) > 20_000

    def z(beta):
        w = np.exp(-beta * energy)
        w /= w.sum(1, keepdims=True)
        mean = (w * energy).sum(1)
        variance = (w * energy**2).sum(1) - mean**2
        return (energy[np.arange(len(energy)), choice] - mean).sum() / np.sqrt(variance.sum())

    assert abs(z(2.0)) < 3.5
    assert abs(z(2.15)) > 4 < abs(z(1.85))


@pytest.mark.parametrize("weight", [0.0, 2.0])
def test_the_compass_says_how_much_proposal_the_residual_form_takes(build, weight):
    teacher, compass, table, energy = build(UNIFORM, 2, proposal_weight=weight)
    shaping = ShapingConfig(candidates=2, select="resample", beta=2.0, form="residual")
    states = sample(teacher, compass, UNIFORM, RolloutConfig(steps=2, seed=5), shaping, "shaped")
    assert_all_steps_follow(states, enumerate_chain(UNIFORM, table, 2, Choice(energy, 2, "resample", 2.0, weight)))


@pytest.mark.parametrize(("steps", "candidates", "form", "ties"), [
    (1, 2, None, False), (4, 3, None, True), (2, 3, "residual", False),
])
@TWO_SPACES
def test_argmin(build, space, steps, candidates, form, ties):
    """The lowest energy is kept; with `ties` many candidates share it, and the first of them is."""
    teacher, compass, table, energy = build(space, steps, ties=ties)
    shaping = ShapingConfig(candidates=candidates, select="argmin", form=form)
    states = sample(teacher, compass, space, RolloutConfig(steps=steps, seed=6), shaping, "shaped")
    choice = Choice(energy, candidates, "argmin", weight=1.0 if form == "residual" else 0.0)
    assert_all_steps_follow(states, enumerate_chain(space, table, steps, choice))


def test_beta_zero_is_blind_in_distribution(build):
    teacher, compass, table, _ = build(MASK3, 3)
    shaping = ShapingConfig(candidates=3, select="resample", beta=0.0)
    states = sample(teacher, compass, MASK3, RolloutConfig(steps=3, seed=6), shaping, "shaped")
    assert_all_steps_follow(states, enumerate_chain(MASK3, table, 3))


@pytest.mark.parametrize(("tau", "every", "shaped"), [(0.5, 1, {2, 3}), (0.0, 2, {0, 2}), (0.25, 3, {3}), (0.3, 1, {2, 3})])
@TWO_SPACES
def test_only_some_steps_are_shaped(build, space, tau, every, shaped):
    """Steps that start at t >= tau, every so many of the grid: in distribution, and in what the log says of them."""
    teacher, compass, table, energy = build(space, 4)
    shaping = ShapingConfig(candidates=3, tau=tau, shape_every=every)
    states = sample(teacher, compass, space, RolloutConfig(steps=4, seed=7), shaping, "shaped")
    assert_all_steps_follow(states, enumerate_chain(space, table, 4, Choice(energy, 3, "argmin"), shaped=shaped))
    for log in roll_out(teacher, compass, RolloutConfig(steps=4, seed=7), shaping, range(500), "shaped"):
        assert log.step_energy.shape == (len(shaped), 3)
        assert log.step_choice.shape == (len(shaped),)
        blind = ~np.isin(log.event_step, list(shaped))
        assert (log.event_candidates[blind] == log.event_token[blind, None]).all()
