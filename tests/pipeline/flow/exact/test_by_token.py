"""Shaped rollouts, every token chosen by itself: the law of the choice, by sweeps, and after whole candidates."""

from dataclasses import replace

import pytest
import torch

from tests.pipeline.flow.exact.chain import Choice, Space, enumerate_chain, euler_step
from tests.pipeline.flow.exact.follows import MASK2, assert_all_steps_follow, sample
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig


class TokenTable:
    """e(token at i | the rest of the text) = table[time cell of t, index of the text with 0 at i, i, token]; [T, V^L, L, V]."""

    needs_completion = False

    def __init__(self, table, proposal_weight):
        self.table, self.proposal_weight = table, proposal_weight
        _, _, self.length, vocab = table.shape
        self.place = vocab ** torch.arange(self.length - 1, -1, -1)

    def energy(self, states, t, completion):
        return torch.zeros(states.shape[:2])

    def token_energy(self, states, t, completion, sets):
        cell = (t * (len(self.table) - 1)).round().long()[sets.owner]
        texts = states[sets.owner].clone()
        texts[torch.arange(len(texts)), sets.positions] = 0
        return self.table[cell, (texts * self.place).sum(-1), sets.positions].gather(1, sets.tokens)


def token_table(space, steps, weight, seed=5):
    shape = (2 * steps + 1, space.vocab**space.length, space.length, space.vocab)
    table = (512 * torch.rand(shape, generator=torch.Generator().manual_seed(seed))).round() / 128
    return TokenTable(table, weight), table.double().numpy()


@pytest.mark.parametrize(("space", "steps", "candidates", "select", "form", "sweeps"), [
    (MASK2, 2, 3, "resample", "plain", 1), (MASK2, 2, 3, "resample", "residual", 2), (MASK2, 3, 2, "argmin", "plain", 2),
    (Space("uniform", 3, None, 2), 1, 2, "resample", "plain", 2),
])
def test_choice_by_token_has_the_law_of_its_definition(build, space, steps, candidates, select, form, sweeps):  # noqa: PLR0913
    teacher, _, table, _ = build(space, steps)
    compass, energy = token_table(space, steps, 1.0)
    shaping = ShapingConfig(candidates=candidates, select=select, beta=3.0, form=form, level="token", sweeps=sweeps)
    states = sample(teacher, compass, space, RolloutConfig(steps=steps, seed=6), shaping, "shaped")
    choice = Choice(energy, candidates, select, 3.0, 0.0 if form == "plain" else 1.0, sweeps)
    assert_all_steps_follow(states, enumerate_chain(space, table, steps, choice))
    other = replace(choice, sweeps=3 - sweeps)
    for wrong in (None, other):  # it is told apart from the blind chain, and from one sweep more or less
        with pytest.raises(AssertionError):
            assert_all_steps_follow(states, enumerate_chain(space, table, steps, wrong))


def test_whole_candidates_first_then_tokens(build):
    """Each level has its own steps, and its own law there."""
    space, steps = MASK2, 2
    teacher, whole, table, energy = build(space, steps)
    compass, tokens = token_table(space, steps, 1.0)
    compass.energy = whole.energy
    shaping = ShapingConfig(candidates=2, level="sequence_to_token", token_from=0.5)
    states = sample(teacher, compass, space, RolloutConfig(steps=steps, seed=7), shaping, "shaped")
    first, last = Choice(energy, 2, "argmin"), Choice(tokens, 2, "argmin", sweeps=1)

    def step(space, table, t, t_next, choice, **more):
        return euler_step(space, table, t, t_next, first if t < 0.5 else last, **more)

    assert_all_steps_follow(states, enumerate_chain(space, table, steps, first, step=step))
