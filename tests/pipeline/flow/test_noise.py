"""The numbers of a rollout: a pure function of (seed, id, step, candidate, position, purpose), each used once."""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
import torch

from tsdfm.pipeline.flow import noise as module
from tsdfm.pipeline.flow.noise import Noise, Purpose, Use

IDS = torch.tensor([0, 1, 7, 2**31 - 1])
ROWS, STEPS, POSITIONS = torch.tensor([2, 0, 2]), torch.tensor([5, 0, 65535]), torch.tensor([0, 9, 3])


def streams(noise):
    """Everything a rollout may ask for, as one flat tensor per kind."""
    out = {"source": noise.source(10).flatten(), "spacing": noise.spacing(12).flatten()}
    for stage in range(4):
        out[f"rings {stage}"] = noise.rings(ROWS, STEPS, 10, stage).flatten()
        out[f"tokens {stage}"] = noise.tokens(ROWS, STEPS, POSITIONS, 6, stage).flatten()
        out[f"choice {stage}"] = noise.choice(ROWS, STEPS, stage)
    return out


def test_no_number_is_used_twice():
    every = torch.cat(list(streams(Noise(3, IDS)).values()))
    assert every.unique().numel() == every.numel()
    assert ((every >= 0) & (every < 1)).all()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_seeds_have_nothing_in_common(seed):
    one, other = (torch.cat(list(streams(Noise(s, IDS)).values())) for s in (seed, 12345))
    assert not torch.isin(one, other).any()


def test_a_number_depends_on_its_own_coordinates_only():
    """Another batch, other rows beside it, more candidates, a longer sequence: the same number."""
    wide, narrow = Noise(3, IDS), Noise(3, IDS[2:3])
    row, step = torch.tensor([2]), torch.tensor([5])
    only = torch.tensor([0])
    assert torch.equal(wide.source(10)[2, :4], narrow.source(4)[0])
    assert torch.equal(wide.rings(ROWS, STEPS, 10, 1)[0, :4], narrow.rings(only, step, 4, 1)[0])
    assert torch.equal(wide.tokens(ROWS, STEPS, POSITIONS, 6)[0, :2], narrow.tokens(only, step, torch.tensor([0]), 2)[0])
    assert torch.equal(wide.choice(row, step, 2), narrow.choice(only, step, 2))
    assert wide.rings(ROWS, STEPS, 10).shape == (3, 10)
    assert wide.tokens(ROWS, STEPS, POSITIONS, 6).shape == (3, 6)
    assert wide.choice(ROWS, STEPS).shape == (3,)


def test_purposes_leave_room_for_stages():
    assert max(Purpose) < 16
    assert len(set(Purpose)) == 5


def test_no_two_uses_or_purposes_share_an_address(monkeypatch):
    """An address is all that a number depends on: key and counter. Philox is a bijection of counters under each key."""
    addresses = {}

    def noted(key, counter):
        words = torch.stack(torch.broadcast_tensors(*key, *counter), -1).flatten(0, -2)
        assert bool(((words >= 0) & (words < 2**32)).all())
        found.append(words)
        return torch.zeros(torch.broadcast_shapes(*(word.shape for word in (*key, *counter))))

    monkeypatch.setattr(module, "uniform", noted)
    for use in Use:
        noise = Noise(3, IDS, use)
        asked: dict[str, Callable[[], torch.Tensor]] = {"source": partial(noise.source, 10), "spacing": partial(noise.spacing, 12)}
        for stage in range(4):
            asked |= {f"rings {stage}": partial(noise.rings, ROWS, STEPS, 10, stage),
                      f"tokens {stage}": partial(noise.tokens, ROWS, STEPS, POSITIONS, 6, stage),
                      f"choice {stage}": partial(noise.choice, ROWS, STEPS, stage)}
        for name, ask in asked.items():
            found: list[torch.Tensor] = []
            ask()
            addresses[use, name] = {tuple(row) for row in torch.cat(found).tolist()}
    for (one, there), (other, here) in combinations(addresses.items(), 2):
        assert not there & here, (one, other)


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_what_measures_is_never_what_was_made(seed):
    making = torch.cat(list(streams(Noise(seed, IDS)).values()))
    for use in set(Use) - {Use.MAKE}:
        assert not torch.isin(torch.cat(list(streams(Noise(seed, IDS, use)).values())), making).any()
