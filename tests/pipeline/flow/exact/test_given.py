"""How far texts around fixed tokens are from the law of texts given these tokens, of a teacher without an error."""

import itertools

import numpy as np
import pytest

from tests.pipeline.flow.exact.chain import jump, posterior, ring
from tests.pipeline.flow.exact.follows import MASK3, UNIFORM


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
