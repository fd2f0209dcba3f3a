"""Rounds against their definition, one trajectory at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tsdfm.pipeline.flow.rings.visits import Ringing, places, rounds


def check(rings, shaped_steps):
    batch, steps, _ = rings.shape
    active = [[s for s in range(steps) if rings[b, s].any()] for b in range(batch)]
    found = list(rounds(rings, shaped_steps, (0,)))
    assert len(found) == max(map(len, active))
    for j, each in enumerate(found):
        expected = [(b, active[b][j]) for b in range(batch) if len(active[b]) > j]
        assert list(zip(each.rows.tolist(), each.steps.tolist(), strict=True)) == expected
        ringing = torch.stack([rings[b, s] for b, s in expected])
        assert torch.equal(each.clocks.rings, ringing)
        naive = Ringing.of(ringing)
        assert torch.equal(each.clocks.owner, naive.owner)
        assert torch.equal(each.clocks.positions, naive.positions)
        assert each.clocks.owner.dtype == each.clocks.positions.dtype == each.rows.dtype == torch.int64
        assert each.some == (any(s in shaped_steps for _, s in expected), any(s == 0 for _, s in expected))


@given(data=st.data())
def test_rounds(data):
    shape = [data.draw(st.integers(1, most)) for most in (4, 6, 5)]
    share = data.draw(st.sampled_from([0.05, 0.3, 1.0]))
    rings = torch.from_numpy(np.random.default_rng(data.draw(st.integers(0, 99))).random(shape) < share)
    rings[0, -1, 0] = True  # at least one rings
    check(rings, tuple(data.draw(st.sets(st.integers(0, shape[1] - 1)))))


def test_a_trajectory_without_a_ring_has_no_visit():
    rings = torch.zeros(3, 4, 2, dtype=torch.bool)
    rings[1, 2, 1] = True
    check(rings, (2,))
    check(rings, ())


@pytest.mark.parametrize("shape", [(5,), (3, 4)])
def test_places_of_a_known_number(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    assert torch.equal(places(mask, int(mask.sum())), mask.nonzero())
