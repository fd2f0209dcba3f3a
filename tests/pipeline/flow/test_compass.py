"""The compasses against their definitions, written naively: one text at a time, no cache, no sharing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import at_once
from tsdfm.pipeline.flow.compass import (
    ENERGY_RESOLUTION,
    PSEUDO_TIME,
    CausalCompass,
    ContrastCompass,
    DenoiserCompass,
    NceCompass,
    TokenSets,
    complete,
    first_of_equals,
    quantise,
)
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.visits import Ringing
from tsdfm.pipeline.flow.rollout import roll_out
from tsdfm.pipeline.flow.shaping import Shaper, StepState
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig
from tsdfm.schemas.model import CausalConfig, ContrastConfig, DenoiserConfig, NceConfig

V, L = 23, 9
SHAPE = {"hidden_size": 16, "n_blocks": 2, "n_heads": 2}


def scattered(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def causal():
    return scattered(CausalLM(CausalConfig(**SHAPE, vocab_size=V - 1, length=L, bos_id=4)))


@pytest.fixture(scope="module")
def masked():
    """Its likeliest token is [MASK] nearly everywhere, unless that is excluded."""
    network = scattered(Denoiser(DenoiserConfig(**SHAPE, vocab_size=V, length=L, cond_dim=8, source="mask", mask_id=V - 1)))
    network.head.bias[V - 1] += 20
    return network


@pytest.fixture(scope="module")
def noisy():
    return scattered(Denoiser(DenoiserConfig(**SHAPE, vocab_size=V - 1, length=L, cond_dim=8, source="uniform")))


def random_states(b, k, seed=0, length=L, vocab=V - 1):
    return torch.randint(vocab, (b, k, length), generator=torch.Generator().manual_seed(seed))


def naive_causal(network, states):
    """Mean -log p(x_i | x_<i), every text scored whole and alone, in float64 from its logits."""
    out = torch.empty(states.shape[:2])
    for b in range(states.shape[0]):
        for k in range(states.shape[1]):
            text = states[b, k]
            logprob = network(text[None])[0].double().log_softmax(-1)
            out[b, k] = -sum(float(logprob[i, text[i]]) for i in range(len(text))) / len(text)
    return out


def close(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


# ------------------------------------------------------------------ causal

def differing_in(positions):
    """Candidates that equal candidate 0 but at one given position each."""
    def make(states):
        states = states[:, :1].repeat(1, len(positions) + 1, 1)
        for k, position in enumerate(positions, 1):
            states[:, k, position] = (states[:, k, position] + 1 + k) % (V - 1)
        return states
    return make


def with_repeats(states):
    """Some equal candidate 0, some equal one another, two rows equal in all of them."""
    states = states.clone()
    states[:, 3], states[:, 5] = states[:, 0], states[:, 2]
    states[1] = states[0]
    return states


CASES = {
    "all differ": lambda s: s,
    "one candidate": lambda s: s[:, :1],
    "all equal": lambda s: s[:, :1].repeat(1, 6, 1),
    "only the first token differs": differing_in([0, 0, 0]),
    "only the last token differs": differing_in([L - 1] * 3),
    "each at another token": differing_in(list(range(L))),
    "first and last": differing_in([0, L - 1, L - 1, 0]),
    "repeats": with_repeats,
    "one trajectory": lambda s: s[:1],
}


@pytest.mark.parametrize("suffix_tokens", [1, L, 2 * L + 1, 4096])
@pytest.mark.parametrize("case", CASES)
def test_causal_energy_is_the_mean_nll(monkeypatch, causal, case, suffix_tokens):
    at_once(monkeypatch, suffix_tokens=suffix_tokens)
    states = CASES[case](random_states(5, 6))
    energy = CausalCompass(causal).energy(states, torch.zeros(len(states)), None)
    assert energy.shape == states.shape[:2]
    assert energy.dtype == torch.float32
    close(energy, naive_causal(causal, states))


@given(data=st.data())
def test_causal_energy_of_any_candidate_set(causal, data):
    """Few tokens, so that candidates share prefixes, and are often equal."""
    b, k, length = (data.draw(st.integers(1, n)) for n in (3, 5, 6))
    flat = data.draw(st.lists(st.integers(0, 1), min_size=b * k * length, max_size=b * k * length))
    states = torch.tensor(flat).view(b, k, length)
    close(CausalCompass(causal).energy(states, torch.zeros(b), None), naive_causal(causal, states))


def test_equal_candidates_have_bitwise_equal_energies(causal):
    states = with_repeats(random_states(4, 6))
    energy = CausalCompass(causal).energy(states, torch.zeros(4), None)
    assert torch.equal(energy[:, 0], energy[:, 3])
    assert torch.equal(energy[:, 2], energy[:, 5])


@pytest.fixture
def tokens_run(monkeypatch):
    """Tokens of every call of the causal LM."""
    seen, real = [], CausalLM.hidden

    def counted(self, inputs, past=None):
        seen.append(inputs.numel())
        return real(self, inputs, past)

    monkeypatch.setattr(CausalLM, "hidden", counted)
    return seen


def test_the_causal_compass_runs_only_what_differs(causal, tokens_run):
    """Counted in tokens: candidate 0 whole; the others from their first difference, and repeats not at all."""
    CausalCompass(causal).energy(CASES["all equal"](random_states(2, 6)), torch.zeros(2), None)
    assert tokens_run == [2 * L]
    tokens_run.clear()
    CausalCompass(causal).energy(CASES["only the last token differs"](random_states(2, 6)), torch.zeros(2), None)
    assert tokens_run == [2 * L, 2 * 3]


def test_suffix_batches_respect_their_limit(causal, monkeypatch, tokens_run):
    at_once(monkeypatch, suffix_tokens=3 * L)
    CausalCompass(causal).energy(random_states(6, 6, seed=3), torch.zeros(6), None)
    assert max(tokens_run[1:]) <= 3 * L
    assert len(tokens_run) < 20


def test_the_first_token_is_scored_from_bos(causal):
    """p(x_0 | bos): of all texts of one token the probabilities sum to one, and they depend on bos_id."""
    states = torch.arange(V - 1)[None, :, None]
    energy = CausalCompass(causal).energy(states, torch.zeros(1), None)
    assert float((-energy.double()).exp().sum()) == pytest.approx(1, abs=1e-5)
    other = scattered(CausalLM(causal.config.model_copy(update={"bos_id": 0})))
    assert not torch.allclose(CausalCompass(other).energy(states, torch.zeros(1), None), energy)


# ------------------------------------------------------------------ completion

def test_complete_fills_where_it_is_told_to():
    states = torch.tensor([[[9, 1, 9], [9, 2, 3]]])
    assert complete(states, torch.tensor([[5, -1, -1]])).tolist() == [[[5, 1, 9], [5, 2, 3]]]
    assert complete(states, torch.tensor([[0, -1, -1]])).tolist() == [[[0, 1, 9], [0, 2, 3]]]  # id 0 is a token
    assert torch.equal(complete(states, None), states)


def test_all_candidates_are_completed_alike(causal):
    """[MASK] is no token of the causal LM: only completed texts can be scored, and they are the naive ones."""
    states = random_states(3, 4)
    states[:, :, 2:5] = V - 1
    completion = torch.full((3, L), -1)
    completion[:, 2:5] = random_states(3, 1, seed=9)[:, 0, 2:5]
    whole = states.clone()
    whole[:, :, 2:5] = completion[:, None, 2:5]
    close(CausalCompass(causal).energy(states, torch.zeros(3), completion), naive_causal(causal, whole))


class Spy:
    """A compass that keeps what it was asked, and prefers the last candidate."""

    needs_completion, proposal_weight = True, 1.0

    def __init__(self):
        self.asked = []

    def energy(self, states, t, completion):
        if completion is not None:  # None: the final energy
            self.asked.append((states.clone(), t.clone(), completion.clone()))
        return -torch.arange(states.shape[1]).float().expand(states.shape[:2])


@pytest.mark.parametrize("source", ["mask", "uniform"])
def test_what_a_compass_is_asked(request, source):
    """Along a whole rollout: completion holds the teacher's argmax exactly where no clock has rung in any candidate, and
    never [MASK]; after it nothing is masked; candidates differ only where clocks ring; t is the end of the step."""
    teacher = request.getfixturevalue("masked" if source == "mask" else "noisy")
    spy = Spy()
    log = roll_out(teacher, spy, RolloutConfig(steps=8, seed=2), ShapingConfig(candidates=5), [3], "shaped")[0]
    steps = sorted(set(log.event_step.tolist()))
    sets = {s: log.event_candidates[log.event_step == s] for s in steps}
    scored = [s for s in steps if (sets[s] != sets[s][:, :1]).any()]
    assert len(spy.asked) == len(scored) > 2
    mask_id = teacher.config.mask_id
    for step, (states, t, completion) in zip(scored, spy.asked, strict=True):
        rung = torch.zeros(L, dtype=torch.bool)
        rung[torch.from_numpy(log.event_position[log.event_step <= step]).long()] = True
        assert ((completion[0] == -1) == rung).all()
        before = torch.from_numpy(log.state_after(step - 1, mask_id)).long()
        logits = teacher(before[None], torch.tensor([step / 8]))[0]
        if mask_id is not None:
            logits[:, mask_id] = -torch.inf
            assert (states[0][:, ~rung] == mask_id).all()
            assert (complete(states, completion) != mask_id).all()
        assert torch.equal(completion[0, ~rung], logits.argmax(-1)[~rung])
        here = torch.zeros(L, dtype=torch.bool)
        here[torch.from_numpy(log.event_position[log.event_step == step]).long()] = True
        assert (states[0][:, ~here] == before[~here]).all()
        assert torch.equal(states[0][:, here].T, torch.from_numpy(sets[step]).long())
        assert t.tolist() == [(step + 1) / 8]


def test_a_compass_that_wants_no_completion_gets_none(masked):
    spy = Spy()
    spy.needs_completion = False
    roll_out(masked, spy, RolloutConfig(steps=4, seed=2), ShapingConfig(candidates=3), range(3), "shaped")
    assert spy.asked == []  # it keeps only calls with a completion


def test_candidates_that_agree_are_not_scored(masked):
    """At a cold temperature all candidates are the argmax: only the final states are scored, and choices are 0."""
    spy = Spy()
    cold = RolloutConfig(steps=4, seed=2, temperature=1e-6)
    logs = roll_out(masked, spy, cold, ShapingConfig(candidates=3), range(5), "shaped")
    assert spy.asked == []
    for log in logs:
        assert (log.step_choice == 0).all()
        assert torch.from_numpy(log.step_energy).isnan().all()


def test_the_residual_form_adds_the_proposals_log_probability(masked):
    """E + log q(drawn) / L, q the tempered posterior; unshaped and unscored trajectories stay NaN."""
    shaping = ShapingConfig(candidates=4, select="resample")
    rollout = RolloutConfig(temperature=0.7)
    shaper = Shaper(masked, Spy(), rollout, shaping, Noise(1, torch.arange(3)))
    state = torch.full((3, L), V - 1)
    rings = torch.zeros(3, L, dtype=torch.bool)
    rings[0, [1, 4]] = rings[1, 2] = rings[2, [0, 8]] = True
    t = torch.full((3,), 0.25, dtype=torch.float64)
    shaped = torch.tensor([True, False, True])
    moment = StepState(torch.arange(3), torch.tensor([2, 2, 2]), t, t + 0.25, state, state == V - 1, shaped, 0.25, True)
    hidden = masked.hidden(state, t.float())
    jump = shaper.jump(moment, Ringing.of(rings), hidden)
    logits = masked.head(hidden) / 0.7
    logits[..., V - 1] = -torch.inf
    logprob = logits.double().log_softmax(-1)
    assert jump.energy[1].isnan().all()
    assert jump.choice[1] == 0
    for a in (0, 2):
        for k in range(4):
            rows = jump.owner == a
            q = sum(float(logprob[a, i, v]) for i, v in zip(jump.positions[rows], jump.candidates[rows, k], strict=True))
            assert float(jump.energy[a, k]) == pytest.approx(-k + q / L, abs=ENERGY_RESOLUTION)


def test_quantise():
    values = torch.tensor([0.0, -0.0, 1 / 3, -1e-9, 5.00013, -7.25])
    out = quantise(values)
    assert ((out - values).abs() <= ENERGY_RESOLUTION / 2).all()
    assert torch.equal(out * 1024, (out * 1024).round())
    assert torch.equal(quantise(out), out)
    assert not torch.signbit(out[[0, 1, 3]]).any()  # no -0.0, whose bytes differ
    assert quantise(torch.tensor([torch.nan])).isnan().all()


@given(data=st.data())
def test_first_of_equals(data):
    k = data.draw(st.integers(1, 6))
    states = torch.tensor(data.draw(st.lists(st.integers(0, 1), min_size=2 * k * 2, max_size=2 * k * 2))).view(2, k, 2)
    first = first_of_equals(states)
    for b in range(2):
        texts = states[b].tolist()
        assert first[b].tolist() == [texts.index(text) for text in texts]


# ------------------------------------------------------------------ denoiser

def naive_pseudo_likelihood(network, states):
    """Besag's, in two halves for the mask source; one text and one position at a time."""
    out = torch.empty(states.shape[:2])
    mask_id = network.config.mask_id
    for b in range(states.shape[0]):
        for k in range(states.shape[1]):
            text, total = states[b, k], 0.0
            for i in range(len(text)):
                seen = text.clone()
                if mask_id is not None:
                    seen[[j for j in range(len(text)) if j % 2 == i % 2]] = mask_id
                logits = network(seen[None], torch.tensor([PSEUDO_TIME]))[0, i].double()
                total -= float(logits.log_softmax(-1)[text[i]])
            out[b, k] = total / len(text)
    return out


@pytest.mark.parametrize("suffix_tokens", [1, 2 * L, 4096])
@pytest.mark.parametrize("source", ["masked", "noisy"])
def test_denoiser_energy_is_the_pseudo_likelihood(request, monkeypatch, source, suffix_tokens):
    at_once(monkeypatch, suffix_tokens=suffix_tokens)
    network = request.getfixturevalue(source)
    states = random_states(3, 4)
    states[1] = states[1, :1]
    completion = torch.full((3, L), -1)
    completion[:, 4] = 7
    whole = states.clone()
    whole[:, :, 4] = 7
    compass = DenoiserCompass(network)
    energy = compass.energy(states, torch.tensor([0.1, 0.5, 1.0]), completion)
    assert energy.dtype == torch.float32
    close(energy, naive_pseudo_likelihood(network, whole))
    close(compass.energy(whole, torch.zeros(3), None), energy)  # t plays no part


def test_a_text_of_one_token_has_a_pseudo_likelihood(masked):
    states = torch.tensor([[[3], [4]]])
    close(DenoiserCompass(masked).energy(states, torch.ones(1), None), naive_pseudo_likelihood(masked, states))


# ------------------------------------------------------------------ contrast

def test_the_energy_of_a_contrast_is_the_difference_of_both_models():
    network = scattered(ContrastLM(ContrastConfig(each=CausalConfig(**SHAPE, vocab_size=V, length=L))))
    states = random_states(3, 4, vocab=V)
    wanted = naive_causal(network.text, states) - naive_causal(network.teachers, states)
    assert wanted.std() > 0.01
    close(ContrastCompass(network).energy(states, torch.ones(3), None), wanted)
    network.teachers.load_state_dict(network.text.state_dict())
    assert ContrastCompass(network).energy(states, torch.ones(3), None).eq(0).all()  # what both find as likely counts for nothing


def test_so_are_its_token_energies():
    network = scattered(ContrastLM(ContrastConfig(each=CausalConfig(**SHAPE, vocab_size=V, length=L))))
    text, completion = random_states(2, 1, vocab=V)[:, 0], torch.full((2, L), -1)
    completion[:, -1] = 3
    sets = TokenSets(torch.tensor([0, 1, 1]), torch.tensor([0, 2, L - 1]), torch.tensor([[1, 2], [0, 4], [2, 3]]))
    found = ContrastCompass(network).token_energy(text, torch.ones(2), completion, sets)
    for row, (owner, position) in enumerate(zip(sets.owner, sets.positions, strict=True)):
        for k, token in enumerate(sets.tokens[row]):
            whole = torch.where(completion >= 0, completion, text)[owner][None]
            of_text, of_teachers = (float(part(whole)[0, position].log_softmax(-1)[token]) for part in (network.text, network.teachers))
            assert float(found[row, k]) == pytest.approx(of_teachers - of_text, abs=1e-5)


# ------------------------------------------------------------------ nce

def test_nce_energy_is_minus_the_logit_per_token():
    network = scattered(NceEncoder(NceConfig(trunk=DenoiserConfig(
        **SHAPE, vocab_size=V, length=L, cond_dim=8, source="mask", mask_id=V - 1))))
    states, t = random_states(3, 4, vocab=V), torch.tensor([0.1, 0.6, 1.0], dtype=torch.float64)
    energy = NceCompass(network).energy(states, t, None)
    assert energy.shape == (3, 4)
    for b in range(3):
        for k in range(4):
            assert float(energy[b, k]) == pytest.approx(-float(network(states[b, k][None], t[b].float()[None])) / L, abs=1e-6)
    # time and state both matter, once the network is trained
    assert not torch.allclose(energy, NceCompass(network).energy(states, t.flip(0), None))


def test_what_each_compass_asks_for(masked, causal):
    assert (CausalCompass(causal).needs_completion, CausalCompass(causal).proposal_weight) == (True, 1.0)
    assert (DenoiserCompass(masked).needs_completion, DenoiserCompass(masked).proposal_weight) == (True, 1.0)
    assert (ContrastCompass.needs_completion, ContrastCompass.proposal_weight) == (True, 0.0)
    assert (NceCompass.needs_completion, NceCompass.proposal_weight) == (False, 0.0)
