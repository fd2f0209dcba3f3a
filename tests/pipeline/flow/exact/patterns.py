"""Which positions ring together at which step, where their clocks are drawn together: every pattern, with its probability."""

import itertools

import numpy as np

from tests.pipeline.flow.exact.chain import ring


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


def phases(ends, free):
    """The phases of `free` positions, with their probabilities, as far as they lie differently between `ends`. From the definition: van der
    Corput's ranks of three positions (binary 00, 01, 10, read backwards 0, 2, 1) are 0, 2, 1, counted from any of the three on."""
    n = len(free)
    ranks = {1: [0], 2: [0, 1], 3: [0, 2, 1]}[n]
    cuts = sorted({0.0, 1.0, *(n * end - r for end in ends for r in range(n) if 0 < n * end - r < 1)})
    return [((high - low) / n, {i: (ranks[(k + offset) % n] + (low + high) / 2) / n for k, i in enumerate(free)})
            for offset in range(n) for low, high in itertools.pairwise(cuts)]
