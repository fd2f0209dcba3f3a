"""The exactness of the sampler: its distribution against a brute-force enumeration of the chain.

Three positions, two or three tokens, a denoiser that is a table of (t, state, position). The enumeration below is written
anew from the design (ring subsets, products of posteriors, K-tuples of candidates) and shares no code with the package.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from tests.support import at_once, present
from tsdfm.kernels import sample_rows
from tsdfm.pipeline.flow.mixture_path import MixturePath
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.flow.rings.clocks import draw_rings
from tsdfm.pipeline.flow.rollout import Begun, roll_out, roll_out_begun
from tsdfm.schemas.generate import RolloutConfig, ShapingConfig

MANY, SAMPLES, BATCH = 100_000, 40_000, 10_000  # MANY: of the plain chain, on which all else stands
P_VALUE = 1e-4  # seeds are fixed, so a test either always passes or never


@dataclass(frozen=True)
class Space:
    """All states of L positions over V tokens (with the mask source one of them is [MASK]), the first digit highest."""

    source: str
    vocab: int
    mask: int | None
    length: int = 3
    fixed: tuple = ()  # pairs (position, token)

    @property
    def states(self):
        return list(itertools.product(range(self.vocab), repeat=self.length))

    @property
    def tokens(self):
        return [v for v in range(self.vocab) if v != self.mask]

    def index(self, state):
        number = 0
        for token in state:
            number = number * self.vocab + int(token)
        return number

    def start(self):
        p = np.zeros(self.vocab**self.length)
        free = self.tokens if self.mask is None else [self.mask]
        for state in itertools.product(*[[dict(self.fixed)[i]] if i in dict(self.fixed) else free for i in range(self.length)]):
            p[self.index(state)] = 1
        return p / p.sum()

    def eligible(self, state):
        return [i for i in self.free if self.mask is None or state[i] == self.mask]

    @property
    def free(self):
        return [i for i in range(self.length) if i not in dict(self.fixed)]

    def given(self, fixed):
        return replace(self, fixed=tuple(fixed))


@dataclass(frozen=True)
class Choice:
    """How candidates are chosen. `energy` [T, V^L], with `sweeps` [T, V^L, L, V] of tokens; `weight`: the compass's proposal
    weight (0: plain form); `sweeps`: of the choice by token (0: whole candidates are chosen)."""

    energy: np.ndarray
    candidates: int
    select: str
    beta: float = 1.0
    weight: float = 0.0
    sweeps: int = 0


def posterior(logits, space, temperature):
    """[..., V] logits -> probabilities, [MASK] excluded."""
    logits = np.array(logits, dtype=np.float64) / temperature
    if space.mask is not None:
        logits[..., space.mask] = -np.inf
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def ring(t, t_next, exponent):
    """g = 1 - (1 - kappa') / (1 - kappa), and 1 at the end of the path."""
    return 1.0 if t_next == 1 else 1 - (1 - t_next**exponent) / (1 - t**exponent)


def chosen(indices, q, choice, cell, length):
    """Distribution over outcomes, by enumeration of all K-tuples of candidates: indices [O] of states, q [O] -> [O]."""
    energy = choice.energy[cell, indices] + choice.weight * np.log(q) / length
    energy = np.round(energy * 1024) / 1024  # energies are stored, and chosen by, in steps of 1/1024
    count, k = len(q), choice.candidates
    out = np.zeros(count)
    # one axis per candidate: e [K, O, ..., O], probability [O, ..., O]
    axes = np.meshgrid(*[np.arange(count)] * k, indexing="ij")
    e = np.stack([energy[a] for a in axes])
    probability = np.prod([q[a] for a in axes], axis=0)
    if choice.select == "argmin":
        first = e.argmin(0)  # numpy: the lowest index of ties
        share = np.stack([first == j for j in range(k)]).astype(float)
    else:
        share = np.exp(-choice.beta * e)
        share /= share.sum(0)
    for j in range(k):
        np.add.at(out, axes[j].ravel(), (probability * share[j]).ravel())
    return out


def jump(space, state, p, g, choice, cell):
    """One jump from `state`: p [L, V], ring probability g; `choice` None: blind. A distribution over all states."""
    out = np.zeros(space.vocab**space.length)
    eligible = space.eligible(state)
    for size in range(len(eligible) + 1):
        for rung in itertools.combinations(eligible, size):
            weight = g**size * (1 - g) ** (len(eligible) - size)
            if weight == 0:
                continue
            out += weight * redrawn(space, state, p, rung, choice, cell)
    return out


def redrawn(space, state, p, rung, choice, cell):
    """What becomes of `state` when the positions `rung` are redrawn. A distribution over all states."""
    out = np.zeros(space.vocab**space.length)
    if not rung:
        out[space.index(state)] = 1
        return out
    if choice is not None and choice.sweeps:
        return redrawn_by_token(space, state, p, rung, choice, cell)
    reached, chances = [], []
    for tokens in itertools.product(space.tokens, repeat=len(rung)):
        after = list(state)
        probability = 1.0
        for position, token in zip(rung, tokens, strict=True):
            after[position] = token
            probability *= p[position, token]
        reached.append(space.index(after))
        chances.append(probability)
    indices, q = np.array(reached), np.array(chances)
    if choice is not None:
        q = chosen(indices, q, choice, cell, space.length)
    np.add.at(out, indices, q)
    return out


def redrawn_by_token(space, state, p, rung, choice, cell):
    """As `redrawn`, where every position chooses by itself: over all K-tuples of candidates of all positions."""
    out, k = np.zeros(space.vocab**space.length), choice.candidates
    known: dict[tuple[object, ...], np.ndarray] = {}  # laws: many texts have one context of a position

    def law_of(text, i, tokens):
        key = (put(text, [i], [0]), i, tokens)
        if key not in known:
            known[key] = token_law(space, text, p, i, tokens, choice, cell)
        return known[key]

    for sets in itertools.product(itertools.product(space.tokens, repeat=k), repeat=len(rung)):
        drawn = math.prod([p[i, token] for i, tokens in zip(rung, sets, strict=True) for token in tokens])
        texts = {put(state, rung, [tokens[0] for tokens in sets]): drawn}
        for _ in range(choice.sweeps):
            after: dict[tuple[int, ...], float] = {}
            for text, weight in texts.items():
                laws = [law_of(text, i, tokens) for i, tokens in zip(rung, sets, strict=True)]
                for picks in itertools.product(range(k), repeat=len(rung)):
                    chance = weight * math.prod([law[pick] for law, pick in zip(laws, picks, strict=True)])
                    if chance:
                        new = put(text, rung, [tokens[pick] for tokens, pick in zip(sets, picks, strict=True)])
                        after[new] = after.get(new, 0) + chance
            texts = after
        for text, weight in texts.items():
            out[space.index(text)] += weight
    return out


def put(state, positions, tokens):
    new = list(state)
    for position, token in zip(positions, tokens, strict=True):
        new[position] = token
    return tuple(new)


def token_law(space, text, p, i, tokens, choice, cell):  # noqa: PLR0913
    """How likely each of K candidates is kept at position i, all else of the text as it is."""
    if len(set(tokens)) == 1:
        return np.eye(len(tokens))[0]
    context = space.index(put(text, [i], [0]))
    e = np.array([choice.energy[cell, context, i, token] + choice.weight * np.log(p[i, token]) for token in tokens])
    e = np.round(e * 128) / 128
    if choice.select == "argmin":
        return np.eye(len(tokens))[e.argmin()]
    law = np.exp(-choice.beta * e / space.length)
    return law / law.sum()


def euler_step(space, table, t, t_next, choice, *, exponent, temperature):  # noqa: PLR0913
    cell, cell_next = (round(x * (len(table) - 1)) for x in (t, t_next))
    g = ring(t, t_next, exponent)
    return np.stack([
        jump(space, state, posterior(table[cell, i], space, temperature), g, choice, cell_next)
        for i, state in enumerate(space.states)
    ])


def rk4_step(space, table, t, t_next, choice, *, exponent, temperature, chained=False):  # noqa: PLR0913
    """Sums over the midpoint states a and b and the end state c that give k2, k3 and k4."""
    middle = (t + t_next) / 2
    cell, half, end = (round(x * (len(table) - 1)) for x in (t, middle, t_next))
    g_half, g = ring(t, middle, exponent), ring(t, t_next, exponent)
    g_rest = ring(middle, t_next, exponent)
    states = space.states
    kernel = np.zeros((len(states),) * 2)
    for x, state in enumerate(states):
        p_a = jump(space, state, posterior(table[cell, x], space, temperature), g_half, choice, half)
        for a in np.flatnonzero(p_a):
            k2 = table[half, a]
            if chained:
                p_b = jump(space, states[a], posterior(k2, space, temperature), g_rest, choice, end)
            else:
                p_b = jump(space, state, posterior(k2, space, temperature), g_half, choice, half)
            for b in np.flatnonzero(p_b):
                k3 = table[half, b]
                if chained:
                    p_c = jump(space, states[b], posterior(k3, space, temperature), g_rest, choice, end)
                else:
                    p_c = jump(space, state, posterior(k3, space, temperature), g, choice, end)
                for c in np.flatnonzero(p_c):
                    average = (table[cell, x] + 2 * k2 + 2 * k3 + table[end, c]) / 6
                    p = posterior(average, space, temperature)
                    kernel[x] += p_a[a] * p_b[b] * p_c[c] * jump(space, state, p, g, choice, end)
    return kernel


def enumerate_chain(space, table, steps, choice=None, *, shaped=None, exponent=1.0, temperature=1.0, step=euler_step, **more):  # noqa: PLR0913
    """[N, V^L, V^L]: the joint distribution of the states before and after each step."""
    p, joints = space.start(), []
    for s in range(steps):
        here = choice if shaped is None or s in shaped else None
        kernel = step(space, table, s / steps, (s + 1) / steps, here, exponent=exponent, temperature=temperature, **more)
        np.testing.assert_allclose(kernel[p > 0].sum(1), 1)
        joints.append(p[:, None] * kernel)
        p = joints[-1].sum(0)
    return np.stack(joints)


def enumerate_patterns(space, table, patterns, choice=None, *, temperature=1.0):
    """As `enumerate_chain`, of rings that are drawn together: `patterns` are pairs (weight, positions that ring at each step)."""
    steps, count = len(patterns[0][1]), space.vocab**space.length
    joints = np.zeros((steps, count, count))
    for weight, rings in patterns:
        p = weight * space.start()
        for s, rung in enumerate(rings):
            cell, cell_next = (round(t * (len(table) - 1)) for t in (s / steps, (s + 1) / steps))
            kernel = np.stack([redrawn(space, state, posterior(table[cell, i], space, temperature), rung, choice, cell_next)
                               if p[i] else np.zeros(count) for i, state in enumerate(space.states)])
            joints[s] += p[:, None] * kernel
            p = p @ kernel
    return joints


def sample(teacher, compass, space, rollout, shaping, arm, samples=SAMPLES):  # noqa: PLR0913
    """[N + 1, samples]: index of every trajectory's state after 0..N steps, replayed from its events."""
    return np.concatenate([
        replay(roll_out(teacher, compass, rollout, shaping, range(start, start + BATCH), arm), space, rollout.steps)
        for start in range(0, samples, BATCH)
    ], 1)


def replay(logs, space, steps):
    digits = space.vocab ** np.arange(space.length - 1, -1, -1)
    states = np.stack([log.source(space.mask) for log in logs]).astype(int)
    row = np.repeat(np.arange(len(logs)), [len(log.event_step) for log in logs])
    when, position, token = (np.concatenate([getattr(log, f"event_{name}") for log in logs])
                             for name in ("step", "position", "token"))
    indices = [states @ digits]
    for step in range(steps):
        here = when == step
        states[row[here], position[here]] = token[here]
        indices.append(states @ digits)
    np.testing.assert_array_equal(states, np.stack([log.tokens for log in logs]))
    return np.stack(indices)


def assert_follows(indices, p):
    """Chi-square of observed state indices against p; cells of fewer than 5 expected are pooled."""
    expected = p * len(indices)
    counts = np.bincount(indices, minlength=len(p)).astype(float)
    assert counts[p == 0].sum() == 0
    big = expected >= 5
    observed, wanted = [*counts[big]], [*expected[big]]
    if expected[~big].sum() > 0:
        observed.append(counts[~big].sum())
        wanted.append(expected[~big].sum())
    assert len(wanted) > 1
    wanted = np.array(wanted) * sum(observed) / sum(wanted)
    assert chisquare(observed, wanted).pvalue > P_VALUE


def assert_all_steps_follow(indices, joints):
    """The end states, and the transitions of the first, the middle and the last step."""
    steps, count = joints.shape[:2]
    assert_follows(indices[-1], joints[-1].sum(0))
    for step in sorted({0, steps // 2, steps - 1}):
        assert_follows(indices[step] * count + indices[step + 1], joints[step].ravel())


MASK2, MASK3, UNIFORM = Space("mask", 3, 2), Space("mask", 4, 0), Space("uniform", 3, None)
SPACES = pytest.mark.parametrize("space", [MASK2, MASK3, UNIFORM], ids=["mask 2+1", "mask 3+1", "uniform 3"])
TWO_SPACES = pytest.mark.parametrize("space", [MASK3, UNIFORM], ids=["mask", "uniform"])


@pytest.fixture
def build(toys, monkeypatch):
    """(space, steps, ...) -> (teacher, compass, table, energy); tables vary with t at the resolution of half a step."""
    monkeypatch.setattr(sample_rows, "CDF_BLOCK", 2)  # so that three tokens, too, fill several blocks, and cheaply
    table_denoiser, table_compass = toys

    def make(space, steps, *, exponent=1.0, seed=0, depends_on_state=True, ties=False, proposal_weight=1.0):  # noqa: PLR0913
        g = torch.Generator().manual_seed(1000 + seed)
        times, states = 2 * steps + 1, space.vocab**space.length
        shape = (times, states if depends_on_state else 1, space.length, space.vocab)
        table = (1.3 * torch.randn(shape, generator=g)).expand(times, states, -1, -1).contiguous()
        energy = 3 * torch.rand(times, states, generator=g)
        energy = energy.round() if ties else (energy * 1024).round() / 1024
        teacher = table_denoiser(table, space.source, space.mask, exponent)
        compass = table_compass(energy, space.vocab, space.length, proposal_weight=proposal_weight)
        return teacher, compass, table.double().numpy(), energy.double().numpy()

    return make


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
@pytest.mark.parametrize("space", [Space("mask", 3, 2, 2), Space("uniform", 3, None, 2)], ids=["mask", "uniform"])
@pytest.mark.parametrize("candidates", [1, 2])
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


def equal(one, other, *, but=()):
    for name in one.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if name in but:
            continue
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            assert a == b, name


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


def phases(ends, free):
    """The phases of `free` positions, with their probabilities, as far as they lie differently between `ends`. From the definition: van der
    Corput's ranks of three positions (binary 00, 01, 10, read backwards 0, 2, 1) are 0, 2, 1, counted from any of the three on."""
    n = len(free)
    ranks = {1: [0], 2: [0, 1], 3: [0, 2, 1]}[n]
    cuts = sorted({0.0, 1.0, *(n * end - r for end in ends for r in range(n) if 0 < n * end - r < 1)})
    return [((high - low) / n, {i: (ranks[(k + offset) % n] + (low + high) / 2) / n for k, i in enumerate(free)})
            for offset in range(n) for low, high in itertools.pairwise(cuts)]


def spaced_patterns(space, steps, exponent):
    """All that spaced clocks of three positions may do, with its probability."""
    if space.mask is not None:
        ends = [((s + 1) / steps) ** exponent for s in range(steps)]
        patterns = []
        for weight, phase in phases(set(ends), space.free):
            when = {i: next(s for s, end in enumerate(ends) if x < end or s == steps - 1) for i, x in phase.items()}
            patterns.append((weight, [tuple(i for i in when if when[i] == s) for s in range(steps)]))
        return patterns
    each = []
    for s in range(steps):
        g = ring(s / steps, (s + 1) / steps, exponent)
        each.append([(weight, tuple(i for i, x in phase.items() if x < g)) for weight, phase in phases({g}, space.free)])
    return [(np.prod([weight for weight, _ in chain]), [rung for _, rung in chain]) for chain in itertools.product(*each)]


def even_patterns(space, steps, exponent):
    """The same of `even` clocks: the sum of g passes each phase, and the phase plus 1, 2, ..."""
    sums = np.cumsum([0.0] + [ring(s / steps, (s + 1) / steps, exponent) for s in range(steps)])
    return [(weight, [*(tuple(i for i, x in phase.items() if any(low <= x + n < high for n in range(5)))
                        for low, high in itertools.pairwise(sums[:-1])), tuple(space.free)])
            for weight, phase in phases(set(sums % 1), space.free)]


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


def of_joint(joint, space, steps):
    """The table of a teacher that was trained without an error on texts of the distribution `joint` [3, 3, 3]: its logits are those of
    p(x_1 | x_t, t), by enumeration of the 27 texts and of how each may have become x_t."""
    texts = np.array(list(itertools.product(space.tokens, repeat=3)))
    table = np.zeros((2 * steps + 1, space.vocab**3, 3, space.vocab))
    for cell, (x, state) in itertools.product(range(2 * steps + 1), enumerate(space.states)):
        kappa, same = cell / (2 * steps), texts == np.array(state)
        seen = same | (np.array(state) == space.mask) if space.mask is not None else kappa * same + (1 - kappa) / 3
        weight = joint.ravel() * seen.prod(1)
        for i, v in itertools.product(range(3), range(space.vocab)):
            table[cell, x, i, v] = weight[texts[:, i] == v].sum()
    return np.log(np.maximum(table, 1e-30))


def distances(joint, space, steps):
    """By set of fixed positions: the total variation between what is sampled and joint given the fixed tokens, averaged over these."""
    table, texts = of_joint(joint, space, steps), list(itertools.product(space.tokens, repeat=3))
    found = {}
    for places in [places for size in range(3) for places in itertools.combinations(range(3), size)]:
        far = 0.0
        for tokens in itertools.product(space.tokens, repeat=len(places)):
            given, wanted = space.given(zip(places, tokens, strict=True)), np.zeros(space.vocab**3)
            for text, p in zip(texts, joint.ravel(), strict=True):
                wanted[space.index(text)] = p * all(text[i] == token for i, token in given.fixed)
            far += np.abs(wanted - wanted.sum() * sampled(given, table, steps)).sum() / 2
        found[places] = far
    return found


def sampled(space, table, steps):
    """The distribution of the end states, as `enumerate_chain` has it, of states that are reached."""
    p = space.start()
    for s in range(steps):
        g = ring(s / steps, (s + 1) / steps, 1.0)
        p = sum(p[i] * jump(space, space.states[i], posterior(table[2 * s, i], space, 1.0), g, None, None) for i in np.flatnonzero(p))
    return p


def test_texts_given_fixed_positions():
    """How far texts are from the law of texts given the fixed tokens, of a teacher without an error; by enumeration, no sample is drawn.

    Mask source: what there is to see goes as 1 / N, is tokens written in the same step (as it is with nothing fixed, and less), and is
    nothing where one position is free. Uniform source: with nothing fixed it goes as 1 / N, too; around fixed tokens it does not go
    away. In total variation, of this law, with the first token fixed: 0.292, 0.190, 0.138, 0.100 and 0.091 in 1, 2, 4, 16 and 64 steps, where the mask
    source has 0.118, 0.059, 0.030, 0.007 and 0.002. The figures of all sets are printed: run it with `-s`.
    """
    joint = np.exp(1.5 * np.random.default_rng(1).standard_normal((3, 3, 3)))
    joint /= joint.sum()
    masks, others = ({n: distances(joint, space, n) for n in (1, 2, 4, 16, 64)} for space in (MASK3, UNIFORM))
    for name, found in (("mask", masks), ("uniform", others)):
        for places in found[1]:
            figures = "  ".join(f"N = {n}: {far[places]:.4f}" for n, far in found.items())
            print(f"total variation to the law of texts given the tokens at {places or 'no place'}, {name} source  {figures}")
    for n, far in masks.items():
        assert max(far[0, 1], far[0, 2], far[1, 2]) < 1e-12
        assert max(far[0,], far[1,], far[2,]) < far[()] < 0.35 / n
    for n, far in others.items():
        assert far[()] < 0.45 / n
    assert all(0.05 < far < 0.1 for places, far in others[64].items() if places), others[64]
    for found, wanted in ((masks, [0.118, 0.059, 0.030, 0.007, 0.002]), (others, [0.292, 0.190, 0.138, 0.100, 0.091])):
        assert [far[0,] for far in found.values()] == pytest.approx(wanted, abs=0.001)


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


# ------------------------------------------------------------------ choice by token

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
