"""Windows against a replay that takes one event after another: states, targets, candidates, weights, top-k."""

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import present
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.loader.windows import Batch, Trajectories, join
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.trajectory import Grid, arrow_schema, check_shard

VOCAB, MASK = 12, 11
OBJECTIVES = ["event", "candidates", "endpoint", "forward_kl", "reverse_kl"]


class Words:
    """Stands in for a vocabulary where only `decode` is asked for."""

    @staticmethod
    def decode(tokens):
        return " ".join(map(str, tokens))


WORDS = cast(Vocabulary, Words)


@st.composite
def datasets(draw):
    """A grid, an arm, and rows that `check_shard` accepts: mask, or uniform with positions that ring again and again; some with fixed ones."""
    length, steps, k, top_k = (draw(st.integers(1, high)) for high in (6, 9, 4, 3))
    mask, arm = draw(st.booleans()), draw(st.sampled_from(["shaped", "blind"]))
    shaped_steps = sorted(draw(st.sets(st.integers(0, steps - 1))))
    top_k = draw(st.sampled_from([0, top_k]))
    grid = Grid(length=length, steps=steps, vocab_size=VOCAB, mask_id=MASK if mask else None, candidates=k, top_k=top_k,
                shaped_steps=shaped_steps, select="resample", compass=False, fixed=draw(st.booleans()))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return grid, arm, [make_log(grid, arm, noise, number) for number in range(draw(st.integers(1, 5)))]


def make_log(grid, arm, noise, number):
    mask = grid.mask_id is not None
    fixed = np.flatnonzero(noise.random(grid.length) < 0.4)[: grid.length - 1] if grid.fixed else np.array([], int)
    free = [i for i in range(grid.length) if i not in fixed]
    if mask:
        events = sorted((int(step), i) for i, step in zip(free, noise.integers(grid.steps, size=len(free)), strict=True))
    else:
        again = noise.random((grid.steps, grid.length)) < 0.5
        again[-1] = True
        events = [(s, i) for s in range(grid.steps) for i in free if again[s, i]]
    shaped = arm == "shaped" and grid.candidates > 1
    k, slots = (grid.candidates, grid.shaped_steps) if shaped else (1, [])
    sets, chosen = np.empty((len(events), k), np.int32), np.zeros(len(events), np.int64)
    energy, choice = np.full((len(slots), k), np.nan, np.float32), np.zeros(len(slots), np.int8)
    step = np.array([s for s, _ in events])
    sets[:] = noise.integers(VOCAB - 1, size=(len(events), 1))
    for slot, s in enumerate(slots):
        here = np.flatnonzero(step == s)
        sets[here] = noise.integers(VOCAB - 1, size=(len(here), k))
        if (sets[here] != sets[here, :1]).any():
            energy[slot], choice[slot] = noise.normal(size=k), noise.integers(k)
            chosen[here] = choice[slot]
    token = sets[np.arange(len(events)), chosen]
    source = None if mask and not grid.fixed else noise.integers(VOCAB - 1, size=grid.length).astype(np.int32)
    if mask and source is not None:
        source[free] = MASK
    tokens = np.full(grid.length, MASK, np.int32) if source is None else source.copy()
    for (_, i), v in zip(events, token, strict=True):
        tokens[i] = v
    falling = -np.sort(noise.exponential(size=(len(events), grid.top_k))) - 2
    return JumpLog(
        trajectory_id=number, arm=arm, source_tokens=source, tokens=tokens, event_step=step.astype(np.int32),
        event_position=np.array([i for _, i in events], np.int32), event_token=token, event_candidates=sets,
        event_topk_ids=noise.integers(VOCAB - 1, size=(len(events), grid.top_k)).astype(np.int32),
        event_topk_logprobs=falling.astype(np.float16), step_energy=energy, step_choice=choice, final_energy=None,
        fixed_positions=fixed.astype(np.int32) if grid.fixed else None)


def last_events(log, start, stop):
    """position -> index of its last event in steps start..stop-1."""
    found = {}
    for index, (step, position) in enumerate(zip(log.event_step.tolist(), log.event_position.tolist(), strict=True)):
        if start <= step < stop:
            found[position] = index
    return found


def mixture(log, grid, event, beta):
    """softmax(-beta E) over the candidates of one event, in Python's float64."""
    k = log.event_candidates.shape[1]
    step = int(log.event_step[event])
    if k == 1 or step not in grid.shaped_steps or np.isnan(log.step_energy[grid.shaped_steps.index(step)]).any():
        return [1 / k] * k
    energies = log.step_energy[grid.shaped_steps.index(step)].tolist()
    mass = [math.exp(-beta * (energy - min(energies))) for energy in energies]
    return [part / math.fsum(mass) for part in mass]


@given(drawn=datasets(), data=st.data())
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_window_is_the_naive_replay(drawn, data, objective):
    grid, arm, logs = drawn
    table = shards.to_table(logs, WORDS, arrow_schema(grid))
    assert check_shard(table, grid) == []
    beta = data.draw(st.sampled_from([0.0, 1.0, 64.0]))
    triples = st.tuples(st.integers(0, len(logs) - 1), st.integers(0, grid.steps - 1), st.integers(1, grid.steps))
    wanted = [(row, start, max(stop, start + 1)) for row, start, stop in data.draw(st.lists(triples, min_size=1, max_size=8))]
    rows, start, stop = np.array(wanted).T
    batch = Trajectories.of(table, grid, arm).window(rows, start, stop, objective, beta)
    assert (batch.t.dtype, batch.dt.dtype, batch.x_t.dtype, batch.target.dtype) == (torch.float32,) * 2 + (torch.int64,) * 2
    for index, (row, first, end) in enumerate(wanted):
        log = logs[row]
        assert batch.t[index] == np.float32(first / grid.steps)
        assert batch.dt[index] == np.float32((end - first) / grid.steps)
        assert batch.x_t[index].tolist() == log.state_after(first - 1, MASK).tolist()
        events = last_events(log, first, grid.steps if objective == "endpoint" else end)
        for i in [] if log.fixed_positions is None else log.fixed_positions:
            assert (int(batch.target[index, i]), int(batch.x_t[index, i])) == (-1, log.tokens[i])  # never asked for, always seen
        assert batch.target[index].tolist() == [
            int(log.event_token[events[i]]) if i in events else -1 for i in range(grid.length)]
        if objective == "endpoint":
            assert all(batch.target[index, i] == log.tokens[i] for i in events)
        for i in range(grid.length):
            if objective == "candidates":
                assert present(batch.candidates)[index, i].tolist() == (log.event_candidates[events[i]].tolist() if i in events
                                                               else [0] * log.event_candidates.shape[1])
                weights = mixture(log, grid, events[i], beta) if i in events else [0.0] * log.event_candidates.shape[1]
                np.testing.assert_allclose(present(batch.weights)[index, i].numpy(), weights, rtol=1e-6, atol=1e-12)
            if objective.endswith("kl"):
                ids, logprobs = ((log.event_topk_ids[events[i]], log.event_topk_logprobs[events[i]]) if i in events
                                 else ([0] * grid.top_k,) * 2)
                np.testing.assert_array_equal(present(batch.topk_ids)[index, i], ids)
                np.testing.assert_array_equal(present(batch.topk_logprobs)[index, i], np.asarray(logprobs, np.float32))
    if objective == "candidates":
        assert batch.weights is not None
        assert batch.candidates is not None
        np.testing.assert_allclose(batch.weights.sum(-1)[batch.target >= 0], 1, atol=1e-6)
        assert (batch.weights.dtype, batch.candidates.dtype) == (torch.float32, torch.int64)
    assert (batch.candidates is None) == (batch.weights is None) == (objective != "candidates")
    assert (batch.topk_ids is None) == (batch.topk_logprobs is None) == (not objective.endswith("kl"))


@given(drawn=datasets(), cut=st.integers(0, 5))
def test_concatenated_shards_are_one_table(drawn, cut):
    grid, arm, logs = drawn
    table = shards.to_table(logs, WORDS, arrow_schema(grid))
    whole = Trajectories.of(table, grid, arm)
    parts = [table.slice(0, cut), table.slice(cut)] if 0 < cut < len(logs) else [table]
    joined = Trajectories.concatenate([Trajectories.of(part, grid, arm) for part in parts])
    assert len(joined) == len(whole) == len(logs)
    for name, value in vars(whole).items():
        np.testing.assert_array_equal(getattr(joined, name), value, err_msg=name)
        if isinstance(value, np.ndarray):
            assert getattr(joined, name).dtype == value.dtype, name


def test_a_window_never_writes_into_the_log():
    """The source is handed out again and again; it must not take the events of an earlier window."""
    grid = Grid(length=5, steps=4, vocab_size=VOCAB, mask_id=None, candidates=2, top_k=0, shaped_steps=[0, 2],
                select="resample", compass=False)
    noise = np.random.default_rng(0)
    trajectories = Trajectories.of(shards.to_table([make_log(grid, "shaped", noise, i) for i in range(3)], WORDS), grid, "shaped")
    before = {name: np.copy(value) for name, value in vars(trajectories).items()}
    rows = np.array([2, 0, 2])
    batch = trajectories.window(rows, np.array([3, 2, 1]), np.array([4, 4, 3]), "candidates", 1.0)
    batch.x_t.zero_()
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(trajectories, name), value, err_msg=name)


@pytest.mark.parametrize("shaped_steps", [[0, 1, 2, 3], [0, 2], []], ids=str)
@pytest.mark.parametrize("by_token", [False, True])
def test_positions_of_one_whole_candidate_share_a_choice(shaped_steps, by_token):
    """Those that jump in one step, unless each position chose by itself there."""
    grid = Grid(length=9, steps=4, vocab_size=VOCAB, mask_id=MASK, candidates=2, top_k=0, shaped_steps=shaped_steps, select="resample",
                compass=False)
    log = make_log(grid, "shaped", np.random.default_rng(1), 0)
    trajectories = Trajectories.of(shards.to_table([log], WORDS, arrow_schema(grid)), grid, "shaped")
    if by_token:
        trajectories = replace(trajectories, event_energy=np.zeros((9, 2), np.float32))
    batch = trajectories.window(np.array([0, 0]), np.array([0, 0]), np.array([4, 4]), "candidates", 1.0)
    choices, position = present(batch.choice).numpy(), trajectories.position
    np.testing.assert_array_equal(choices[0], choices[1])
    choice = choices[1]
    together = choice[position][:, None] == choice[position]
    step = trajectories.moment
    alone = by_token and ~np.isin(step, shaped_steps)
    np.testing.assert_array_equal(together, (step[:, None] == step) & ~np.asarray(alone)[..., None] | np.eye(9, dtype=bool))


def random_batch(size, k, seed):
    noise = torch.Generator().manual_seed(seed)
    return Batch(torch.randint(9, (size, 3), generator=noise), torch.rand(size, generator=noise), torch.rand(size, generator=noise),
                 torch.randint(9, (size, 3), generator=noise), torch.randint(9, (size, 3, k), generator=noise),
                 torch.rand(size, 3, k, generator=noise), None, None)


def test_join_puts_rows_in_their_places_and_pads_candidates():
    one, two = random_batch(2, 4, 0), random_batch(3, 1, 1)
    joined = join([one, two], np.array([3, 0, 1, 4, 2]))
    for part, places in ((one, [3, 0]), (two, [1, 4, 2])):
        k = part.weights.shape[2]
        for name in ("x_t", "t", "dt", "target"):
            torch.testing.assert_close(getattr(joined, name)[places], getattr(part, name), rtol=0, atol=0)
        for name in ("candidates", "weights"):
            torch.testing.assert_close(getattr(joined, name)[places][..., :k], getattr(part, name), rtol=0, atol=0)
            assert not getattr(joined, name)[places][..., k:].any()
    assert joined.topk_ids is None


def test_rows_and_devices_keep_what_is_none():
    batch = random_batch(4, 2, 0)
    part = batch.rows(slice(1, 3)).to("meta")
    assert part.x_t.shape == (2, 3)
    assert part.weights.shape == (2, 3, 2)
    assert part.weights.device.type == "meta"
    assert part.topk_ids is part.topk_logprobs is None
    torch.testing.assert_close(batch.rows(slice(1, 3)).weights, batch.weights[1:3])
