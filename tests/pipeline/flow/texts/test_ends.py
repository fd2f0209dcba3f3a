"""Texts that end, by enumeration: whose law of lengths is kept, by which rule of what a model is asked in training; energies."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tsdfm.pipeline.flow.compass import CausalCompass, DenoiserCompass, NceCompass
from tsdfm.pipeline.flow.noise import Use
from tsdfm.pipeline.flow.rollout import Begun, roll_out, roll_out_begun, roll_out_blind
from tsdfm.pipeline.models.causal import CausalLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.text.ends.written import is_written, lengths
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import CausalConfig, DenoiserConfig, NceConfig

A, B, END, MASK = range(4)
L, V = 3, 4
STATES = list(itertools.product(range(V), repeat=L))
SHAPE = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "mlp_ratio": 1}


def texts():
    """All padded texts: none is empty, behind an end there are only ends."""
    return [text for text in itertools.product((A, B, END), repeat=L)
            if text[0] != END and all(text[i + 1] == END for i in range(L - 1) if text[i] == END)]


def law(seed=3):
    return dict(zip(texts(), np.random.default_rng(seed).dirichlet(np.ones(len(texts())) / 2), strict=True))


def size(text):
    return text.index(END, 1) + 1 if END in text[1:] else L


def everywhere(state, text):
    return [True] * L


def unless_an_end_stands(state, text):
    """The package's own rule: what `losses` and `windows` ask."""
    return is_written(np.array(state), END).tolist()


def never_behind_the_end(state, text):
    """What leaves out all that turns out to stand behind the end."""
    return [i < size(text) for i in range(L)]


def learnt(asked):
    """The optimum of the cross entropy of texts of `law` under a rule, [V^L, L, V]; where nothing is asked it writes a word."""
    table = np.zeros((len(STATES), L, V))
    for index, state in enumerate(STATES):
        for text, p in law().items():
            if all(x in (MASK, y) for x, y in zip(state, text, strict=True)):
                for i, wanted in enumerate(asked(state, text)):
                    table[index, i, text[i]] += p * wanted
    table[..., A] += (table.sum(-1) == 0)
    return table / table.sum(-1, keepdims=True)


def written_in(steps, table, forced):
    """The law of texts up to their ends that a sampler of `steps` has; `forced`: it writes ends behind an end, as ours."""
    now = {(MASK,) * L: 1.0}
    for step in range(steps):
        rings, then = 1 / (steps - step), dict[tuple[int, ...], float]()
        for state, p in now.items():
            draws = []
            for i, x in enumerate(state):
                q = table[STATES.index(state), i]
                if forced and not is_written(np.array(state), END)[i]:
                    q = np.eye(V)[END]
                draws.append([(x, 1.0)] if x != MASK else [(v, rings * q[v]) for v in (A, B, END)] + [(MASK, 1 - rings)])
            for drawn in itertools.product(*draws):
                share = p * np.prod([each[1] for each in drawn])
                if share:
                    end = tuple(each[0] for each in drawn)
                    then[end] = then.get(end, 0.0) + share
        now = then
    found = dict.fromkeys(law(), 0.0)
    for text, p in now.items():
        found[text[: size(text)] + (END,) * (L - size(text))] += p
    return found


def variation(found):
    return sum(abs(p - found[text]) for text, p in law().items()) / 2


def of_lengths(found):
    """How many texts of each size there are of a law, [L + 1]."""
    return np.bincount([size(text) for text in found], weights=list(found.values()), minlength=L + 1)


def test_which_rule_keeps_the_law_of_texts_and_of_lengths():
    """All that is asked before an end stands is needed. Left out, the model takes for granted that each text goes on, and no
    number of steps mends that: in total variation 0.378, 0.102 and 0.007 in 1, 4 and 64 steps against 0.342, 0.099 and 0.059."""
    ours, all_of_it, left_out = (learnt(rule) for rule in (unless_an_end_stands, everywhere, never_behind_the_end))
    off = {steps: (variation(written_in(steps, ours, forced=True)), variation(written_in(steps, all_of_it, forced=False)),
                   variation(written_in(steps, left_out, forced=True))) for steps in (1, 4, 64)}
    assert [round(off[steps][0], 3) for steps in off] == [0.378, 0.102, 0.007]
    assert [round(off[steps][2], 3) for steps in off] == [0.342, 0.099, 0.059]
    assert off[4][0] == pytest.approx(off[4][1])  # what isn't asked is known
    assert off[64][0] < 0.01 < 0.05 < off[64][2]
    assert off[64][0] < off[4][0] < off[1][0]
    assert of_lengths(written_in(64, ours, forced=True)) == pytest.approx(of_lengths(law()), abs=0.01)


@pytest.fixture(scope="module")
def teacher(toys):
    """A perfect model of `law`, but that it says words behind ends."""
    table = torch.tensor(learnt(unless_an_end_stands)).log().clamp_min(-60)[None]
    made = toys[0](table, "mask", MASK)
    made.config = made.config.model_copy(update={"end_id": END})
    return made


@pytest.mark.parametrize("steps", [2, 4])
def test_the_sampler_has_the_law_of_the_enumeration(teacher, steps):
    logs = roll_out_blind(teacher, RolloutConfig(steps=steps), range(20_000), Use.MEASURE)
    found = np.array([log.tokens for log in logs])
    wanted = written_in(steps, learnt(unless_an_end_stands), forced=True)
    counts = np.array([sum(p for text, p in wanted.items() if size(text) == n) for n in range(2, L + 1)])
    assert chisquare(np.bincount(lengths(found, END), minlength=L + 1)[2:], counts * len(logs)).pvalue > 1e-4


def test_behind_an_end_that_stands_there_are_only_ends(teacher):
    """Its own words there are never taken, on either arm, in solvers' stages, nor where an end is given."""
    shaping = ShapingConfig(candidates=3)
    compass = FirstToken()
    for solver in ("euler", "rk4"):
        for arm in ("blind", "shaped"):
            for log in roll_out(teacher, compass, RolloutConfig(steps=6, solver=solver), shaping, range(200), arm):
                state = np.full(L, MASK)
                for step in np.unique(log.event_step):
                    here = log.event_step == step
                    behind = ~is_written(state, END)[log.event_position[here]]
                    assert (log.event_candidates[here][behind] == END).all()
                    state[log.event_position[here]] = log.event_token[here]
    given = torch.tensor([[A, END, -1]]).repeat(400, 1)
    found = roll_out_begun(teacher, None, RolloutConfig(steps=3), ShapingConfig(), Begun(range(400), given), "blind")
    assert {int(log.tokens[2]) for log in found} == {A}  # an end that is given ends nothing


class FirstToken:
    """A compass of no sense."""

    needs_completion, proposal_weight = False, 1.0

    def energy(self, states, t, completion):
        return states[..., 1].float()


# ------------------------------------------------------------------ energies

@pytest.fixture(scope="module")
def networks():
    """A causal LM, a denoiser of padded texts, an encoder for it, and the same without an end."""
    torch.manual_seed(0)
    plain = DenoiserConfig(**SHAPE, vocab_size=9, length=6, cond_dim=8, mask_id=8)
    ending = plain.model_copy(update={"end_id": 1})
    found = CausalLM(CausalConfig(**SHAPE, vocab_size=8, length=6)), Denoiser(ending), NceEncoder(NceConfig(trunk=ending))
    for network in found:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        network.eval().requires_grad_(False)
    return found


CANDIDATES = torch.tensor([
    [[2, 3, 4, 5, 6, 7], [2, 3, 1, 5, 6, 7], [2, 3, 4, 5, 1, 3], [2, 3, 4, 5, 6, 7]],  # the shortest ends at its third token
    [[1, 3, 4, 1, 6, 7], [1, 3, 4, 1, 2, 2], [1, 3, 5, 1, 6, 1], [1, 3, 4, 1, 6, 7]],  # all end at the fourth; the first is no end
    [[2, 3, 4, 5, 6, 7], [2, 3, 3, 5, 6, 7], [2, 3, 4, 5, 6, 2], [2, 3, 7, 7, 6, 7]],  # none ends
])
SCORED = [3, 4, 6]


def test_all_candidates_of_a_set_are_scored_at_the_same_positions(networks):
    """The mean of the nats of those that all have written, by the definition; nothing behind them matters."""
    causal, denoiser, _ = networks
    found = CausalCompass(causal, 1).energy(CANDIDATES, torch.ones(3), None)
    logprob = causal(CANDIDATES.flatten(0, 1)).double().log_softmax(-1)
    nats = -logprob.gather(-1, CANDIDATES.flatten(0, 1)[..., None])[..., 0].view(3, 4, 6)
    for row, n in enumerate(SCORED):
        torch.testing.assert_close(found[row], nats[row, :, :n].mean(-1).float(), atol=2e-5, rtol=0)
    assert torch.equal(found[:2, 0], found[:2, 3])
    assert found[1, 0] == found[1, 1]  # they differ behind the end alone
    pseudo = DenoiserCompass(denoiser).energy(CANDIDATES, torch.ones(3), None)
    flat, parts = CANDIDATES.flatten(0, 1), []
    for parity in (0, 1):
        scored = torch.arange(6) % 2 == parity
        logits = denoiser(flat.masked_fill(scored, 8), torch.full((len(flat),), 0.5)).double()
        parts.append(-logits.log_softmax(-1).gather(-1, flat[..., None])[..., 0] * scored)
    nats = sum(parts).view(3, 4, 6)
    for row, n in enumerate(SCORED):
        torch.testing.assert_close(pseudo[row], nats[row, :, :n].mean(-1).float(), atol=2e-5, rtol=0)


def test_without_an_end_energies_are_what_they_were(networks):
    causal, _, _ = networks
    whole = CausalCompass(causal).energy(CANDIDATES, torch.ones(3), None)
    nats = causal(CANDIDATES.flatten(0, 1)).double().log_softmax(-1).gather(-1, CANDIDATES.flatten(0, 1)[..., None])
    torch.testing.assert_close(whole, -nats.view(3, 4, 6).mean(-1).float(), atol=2e-5, rtol=0)


def test_an_encoder_does_not_see_what_stands_behind_an_end(networks):
    _, _, encoder = networks
    states = torch.tensor([[[2, 1, 4, 8, 6, 8], [2, 1, 5, 8, 1, 8], [2, 1, 4, 4, 6, 8]]])
    found = NceCompass(encoder).energy(states, torch.full((1,), 0.5), None)
    assert found[0, 0] == found[0, 1] != found[0, 2]


def test_the_residual_form_counts_the_same_positions(teacher):
    """E + sum of log q over the draws that are scored, per scored position: by hand, from a trajectory's first step."""
    rollout, k = RolloutConfig(steps=1), 3
    shaping = ShapingConfig(candidates=k, form="residual")

    class Zero:
        needs_completion, proposal_weight = False, 1.0

        def energy(self, states, t, completion):
            return torch.zeros(states.shape[:2])

    logs = roll_out(teacher, Zero(), rollout, shaping, range(300), "shaped")
    q, sizes = learnt(unless_an_end_stands)[STATES.index((MASK,) * L)], set()
    for log in logs:
        sets = log.event_candidates.T  # [K, L]: in one step all ring
        n = min(size(tuple(each)) for each in sets.tolist())
        sizes.add(n)
        wanted = [sum(np.log(q[i, each[i]]) for i in range(n)) / n for each in sets.tolist()]
        if not np.isnan(log.step_energy).any():
            assert log.step_energy[0] == pytest.approx(wanted, abs=2e-3)
    assert sizes == {2, 3}
