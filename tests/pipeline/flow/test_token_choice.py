"""The choice by token: energies of single tokens by brute force, and what such a rollout shares with others."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import LENGTH, assert_refused, present
from tsdfm.pipeline.flow.compass import (
    PSEUDO_TIME,
    TOKEN_RESOLUTION,
    CausalCompass,
    DenoiserCompass,
    MaskedDenoiserCompass,
    NceCompass,
    TokenCompass,
    TokenSets,
    complete,
)
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.opening import open_compass
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.models.folder import load_denoiser
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig

CPU = torch.device("cpu")
ROLLOUT = RolloutConfig(steps=4, seed=2)


@pytest.fixture(scope="module")
def teacher(tiny_models):
    return load_denoiser(tiny_models.mask)


@pytest.fixture(scope="module")
def compasses(tiny_models, teacher):
    names = {"ar": str(tiny_models.ar), "denoiser": "denoiser", "nce": str(tiny_models.nce)}
    return {kind: open_compass(name, teacher, LENGTH, CPU)[0] for kind, name in names.items()}


def asked(vocab, batch=3, candidates=4, seed=0):
    """Half-written texts, what completes them, and six sets of tokens, two in one text."""
    g = torch.Generator().manual_seed(seed)
    states = torch.randint(vocab - 1, (batch, LENGTH), generator=g)
    completion = torch.where(torch.rand(batch, LENGTH, generator=g) < 0.3, torch.randint(vocab - 1, (batch, LENGTH), generator=g), -1)
    states[completion >= 0] = vocab - 1  # [MASK]
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    positions = torch.tensor([0, 7, LENGTH - 1, 3, 4, 5])
    return states, completion, TokenSets(owner, positions, torch.randint(vocab - 1, (6, candidates), generator=g))


@torch.no_grad()
def test_causal_token_energies_are_those_of_each_substitution_scored_alone(compasses, teacher):
    """-log p(token | the text before it), the token put into the text and the text scored whole."""
    states, completion, sets = asked(teacher.network.config.vocab_size)
    found = compasses["ar"].token_energy(states, torch.zeros(3), completion, sets)
    network, texts = compasses["ar"].network, complete(states[:, None], completion)[:, 0]
    for r, (owner, position) in enumerate(zip(sets.owner.tolist(), sets.positions.tolist(), strict=True)):
        for k, token in enumerate(sets.tokens[r].tolist()):
            text = texts[owner].clone()
            text[position] = token
            alone = -float(network(text[None])[0, position].double().log_softmax(-1)[token])
            assert float(found[r, k]) == pytest.approx(alone, abs=1e-4)


@torch.no_grad()
def test_of_the_last_position_a_token_energy_is_what_the_token_adds_to_the_texts(compasses, teacher):
    """Nothing comes after it, so L times the energies of whole texts differ by it."""
    states, _, sets = asked(teacher.network.config.vocab_size)
    states = complete(states[:, None], asked(teacher.network.config.vocab_size)[1])[:, 0]
    found = compasses["ar"].token_energy(states, torch.zeros(3), None, sets)[2]
    texts = states[0].repeat(4, 1)
    texts[:, -1] = sets.tokens[2]
    whole = compasses["ar"].energy(texts[None], torch.zeros(1), None)[0]
    torch.testing.assert_close(LENGTH * (whole - whole[0]), found - found[0], rtol=0, atol=1e-3)


@torch.no_grad()
def test_pseudo_likelihood_of_single_tokens(compasses, teacher):
    """The token's own term of the pseudo-likelihood of the text that it is put into."""
    states, completion, sets = asked(teacher.network.config.vocab_size)
    found = compasses["denoiser"].token_energy(states, torch.zeros(3), completion, sets)
    texts, network = complete(states[:, None], completion)[:, 0], teacher.network
    for r, (owner, position) in enumerate(zip(sets.owner.tolist(), sets.positions.tolist(), strict=True)):
        for k, token in enumerate(sets.tokens[r].tolist()):
            text = texts[owner].clone()
            text[position] = token
            text[position % 2 :: 2] = network.config.mask_id
            term = -float(network(text[None], torch.tensor([PSEUDO_TIME]))[0, position].double().log_softmax(-1)[token])
            assert float(found[r, k]) == pytest.approx(term, abs=1e-4)


def test_which_compasses_score_tokens(compasses, tiny_models):
    uniform = load_denoiser(tiny_models.uniform)
    assert isinstance(compasses["ar"], CausalCompass)
    assert isinstance(compasses["denoiser"], MaskedDenoiserCompass)
    assert isinstance(compasses["nce"], NceCompass)
    of_uniform = present(open_compass("denoiser", uniform, LENGTH, CPU)[0])
    assert type(of_uniform) is DenoiserCompass
    assert [isinstance(each, TokenCompass) for each in (*compasses.values(), of_uniform)] == [True, True, False, False]


@pytest.mark.parametrize("compass", ["nce", "denoiser"])
def test_a_compass_that_scores_no_tokens_is_refused_before_anything_is_made(cli, tiny_models, tmp_path, compass):
    out = tmp_path / "out"
    model = tiny_models.mask if compass == "nce" else tiny_models.uniform
    flags = ["--teacher", str(model), "--compass", str(getattr(tiny_models, compass, compass)), "--out", str(out)]
    assert_refused(cli("generate", *flags, "--level", "token"), "level", "token", "--level sequence")
    assert not out.exists()


@pytest.mark.parametrize(("given", "word"), [
    ({"sweeps": 2}, "sweeps"), ({"token_from": 0.25}, "token_from"), ({"level": "token", "token_from": 0.25}, "token_from")])
def test_settings_that_would_do_nothing_are_refused(given, word):
    with pytest.raises(ValueError, match=word):
        ShapingConfig.model_validate(given)


def test_older_configs_are_written_as_they_were():
    assert not {"level", "token_from", "sweeps"} & ShapingConfig().model_dump().keys()
    assert "logprobs" not in RolloutConfig().model_dump()
    assert ShapingConfig(level="token", sweeps=2).model_dump()["sweeps"] == 2


# ------------------------------------------------------------------ rollouts

def rows(teacher, compass, shaping, arm="shaped", rollout=ROLLOUT, ids=range(5)):
    return roll_out(teacher.network, compass, rollout, shaping, ids, arm)


class Indifferent:
    """All tokens alike: every position keeps candidate 0."""

    needs_completion, proposal_weight = True, 0.0

    def energy(self, states, t, completion):
        return torch.zeros(states.shape[:2])

    def token_energy(self, states, t, completion, sets):
        return torch.zeros(sets.tokens.shape)


@pytest.mark.parametrize("level", ["token", "sequence_to_token"])
def test_rings_and_candidate_0_are_those_of_the_blind_arm(teacher, compasses, level):
    blind = rows(teacher, None, ShapingConfig(), "blind")
    kept_0 = rows(teacher, Indifferent(), ShapingConfig(level=level, sweeps=2))
    shaped = rows(teacher, compasses["ar"], ShapingConfig(level=level))
    for one, same, other in zip(blind, kept_0, shaped, strict=True):
        np.testing.assert_array_equal(one.event_token, same.event_token)
        np.testing.assert_array_equal(same.event_candidates[:, 0], same.event_token)
        np.testing.assert_array_equal(one.event_step, other.event_step)
        np.testing.assert_array_equal(one.event_position, other.event_position)
        first = one.event_step == one.event_step[0]
        np.testing.assert_array_equal(one.event_token[first], other.event_candidates[first, 0])
        assert one.event_choice is None
    assert any((one.event_token != other.event_token).any() for one, other in zip(blind, shaped, strict=True))


def test_one_candidate_is_blind(teacher, compasses):
    blind = rows(teacher, compasses["ar"], ShapingConfig(), "blind")
    one = rows(teacher, compasses["ar"], ShapingConfig(candidates=1, level="token"))
    for a, b in zip(blind, one, strict=True):
        np.testing.assert_array_equal(a.event_token, b.event_token)
        assert (present(b.event_choice) == 0).all()
        assert np.isnan(present(b.event_energy)).all()
        assert a.final_energy == b.final_energy


@pytest.mark.parametrize("kind", ["ar", "denoiser"])
@pytest.mark.parametrize("sweeps", [1, 2])
def test_what_the_log_of_a_choice_by_token_holds(teacher, compasses, kind, sweeps):
    """Choices and energies of events, in multiples of the resolution; nothing of whole candidates; the best is kept."""
    for log in rows(teacher, compasses[kind], ShapingConfig(level="token", sweeps=sweeps)):
        energy, choice = present(log.event_energy), present(log.event_choice)
        assert log.step_energy.shape[0] == len(log.step_choice) == 0
        agree = (log.event_candidates == log.event_candidates[:, :1]).all(1)
        np.testing.assert_array_equal(np.isnan(energy).any(1), agree)
        assert (choice[agree] == 0).all()
        assert (choice[~agree] == energy[~agree].argmin(1)).all()
        steps = energy[~agree] / TOKEN_RESOLUTION
        np.testing.assert_array_equal(steps, steps.round())
        np.testing.assert_array_equal(log.event_token, log.event_candidates[np.arange(len(choice)), choice])


def test_the_energies_in_the_log_are_those_of_the_text_with_candidate_0(teacher, compasses):
    log = rows(teacher, compasses["ar"], ShapingConfig(level="token"), ids=[3])[0]
    mask_id = present(teacher.network.config.mask_id)
    for step in sorted(set(log.event_step.tolist())):
        here = log.event_step == step
        before = torch.from_numpy(log.state_after(step - 1, mask_id)).long()
        hidden = teacher.network.hidden(before[None], torch.tensor([step / 4]))
        logits = teacher.network.head(hidden)[0]
        logits[:, mask_id] = -torch.inf
        text = torch.where(before == mask_id, logits.argmax(-1), before)
        positions = torch.from_numpy(log.event_position[here]).long()
        text[positions] = torch.from_numpy(log.event_candidates[here, 0]).long()
        sets = TokenSets(torch.zeros_like(positions), positions, torch.from_numpy(log.event_candidates[here]).long())
        wanted = compasses["ar"].token_energy(text[None], torch.ones(1), None, sets).detach().numpy()
        found = present(log.event_energy)[here]
        scored = ~np.isnan(found)
        np.testing.assert_allclose(found[scored], wanted[scored], atol=TOKEN_RESOLUTION)


def test_each_level_keeps_its_own_steps(teacher, compasses):
    shaping = ShapingConfig(level="sequence_to_token", token_from=0.5)
    assert shaping.sequence_steps_of(ROLLOUT) == (0, 1)
    assert shaping.token_steps_of(ROLLOUT) == (2, 3)
    whole = rows(teacher, compasses["ar"], ShapingConfig())
    for log, early in zip(rows(teacher, compasses["ar"], shaping), whole, strict=True):
        np.testing.assert_array_equal(log.step_energy, early.step_energy[:2])
        choice, energy = present(log.event_choice), present(log.event_energy)
        at_first = log.event_step < 2
        assert np.isnan(energy[at_first]).all()
        assert np.isfinite(energy[~at_first]).any()
        np.testing.assert_array_equal(choice[at_first], log.step_choice[log.event_step[at_first]])
        np.testing.assert_array_equal(log.event_token, log.event_candidates[np.arange(len(choice)), choice])


def test_batches_do_not_matter_and_noise_is_a_function_of_its_place(teacher, compasses):
    shaping = ShapingConfig(level="token", select="resample", beta=16.0, sweeps=2)
    together = rows(teacher, compasses["ar"], shaping)
    alone = [rows(teacher, compasses["ar"], shaping, ids=[number])[0] for number in range(5)]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_array_equal(a.event_token, b.event_token)
        np.testing.assert_array_equal(present(a.event_choice), present(b.event_choice))
    noise, zero = Noise(1, torch.arange(1)), torch.zeros(1, dtype=torch.long)
    drawn = {float(noise.token_choice(zero, zero, zero + position, sweep, stage))
             for position in range(2) for sweep in range(3) for stage in range(2)}
    assert len({*drawn, *(float(noise.choice(zero, zero, stage)) for stage in range(2))}) == 14


@pytest.mark.parametrize("solver", ["rk4", "rk4_chained"])
def test_inner_stages_choose_by_token_too(teacher, compasses, solver):
    rollout = ROLLOUT.model_copy(update={"solver": solver})
    logs = rows(teacher, compasses["ar"], ShapingConfig(level="token"), rollout=rollout)
    assert [log.tokens.tolist() for log in logs] != [
        log.tokens.tolist() for log in rows(teacher, compasses["ar"], ShapingConfig(level="token"))]


def test_log_probabilities_of_candidates(teacher, compasses):
    """Those of the tempered posterior that they were drawn from; of an unshaped step, of its one draw."""
    rollout = ROLLOUT.model_copy(update={"logprobs": True, "temperature": 0.8})
    log = rows(teacher, compasses["ar"], ShapingConfig(tau=0.5), rollout=rollout, ids=[3])[0]
    mask_id = present(teacher.network.config.mask_id)
    for event, step in enumerate(log.event_step.tolist()):
        before = torch.from_numpy(log.state_after(step - 1, mask_id)).long()
        logits = teacher.network(before[None], torch.tensor([step / 4]))[0, int(log.event_position[event])] / 0.8
        logits[mask_id] = -torch.inf
        wanted = logits.log_softmax(-1)[torch.from_numpy(log.event_candidates[event]).long()]
        np.testing.assert_allclose(present(log.event_logprob)[event], wanted.detach().numpy(), atol=0.02)
    assert log.event_choice is None
    assert replace(log, event_logprob=None).event_energy is None
