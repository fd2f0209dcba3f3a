"""The law of the sampler on tiny state spaces, by brute force: three positions, two or three tokens, a denoiser that is a table.

Written anew from the design (sets of positions that ring, products of posteriors, K-tuples of candidates); it shares no code
with the package. A law is a joint distribution of states; states are numbered by their tokens, the first digit highest.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np


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


def put(state, positions, tokens):
    new = list(state)
    for position, token in zip(positions, tokens, strict=True):
        new[position] = token
    return tuple(new)
