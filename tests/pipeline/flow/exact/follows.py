"""What the sampler did, replayed from its logs, and whether that follows a law: chi-square tests of states and of transitions."""

import numpy as np
import pytest
from scipy.stats import chisquare

from tests.pipeline.flow.exact.chain import Space
from tsdfm.pipeline.flow.rollout import roll_out

MANY, SAMPLES, BATCH = 100_000, 40_000, 10_000  # MANY: of the plain chain, on which all else stands
P_VALUE = 1e-4  # seeds are fixed, so a test either always passes or never

MASK2, MASK3, UNIFORM = Space("mask", 3, 2), Space("mask", 4, 0), Space("uniform", 3, None)
SPACES = pytest.mark.parametrize("space", [MASK2, MASK3, UNIFORM], ids=["mask 2+1", "mask 3+1", "uniform 3"])
TWO_SPACES = pytest.mark.parametrize("space", [MASK3, UNIFORM], ids=["mask", "uniform"])


def sample(teacher, compass, space, rollout, shaping, arm, samples=SAMPLES):  # noqa: PLR0913
    """[N + 1, samples]: index of every trajectory's state after 0..N steps, replayed from its events."""
    return np.concatenate([
        replay(roll_out(teacher, compass, rollout, shaping, range(start, start + BATCH), arm), space, rollout.steps)
        for start in range(0, samples, BATCH)
    ], 1)


def replay(logs, space, steps):
    """[N + 1, logs]: the index of every log's state after 0..N steps; the last of them is its text."""
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


def equal(one, other, *, but=()):
    """Asserts that two logs are equal to the bit, whatever stands in the fields `but`."""
    for name in one.__dataclass_fields__:
        a, b = getattr(one, name), getattr(other, name)
        if name in but:
            continue
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            assert a == b, name
