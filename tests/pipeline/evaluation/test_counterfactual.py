"""Counterfactuals against enumeration, against loops over single steps, and against real runs at K' candidates."""

import itertools
import math
import statistics
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.inspection_data import dataset, logs_of
from tests.support import make_dataset
from tsdfm.pipeline.dataset.manifest import read_shard
from tsdfm.pipeline.evaluation.counterfactual import BETAS, counterfactual, expected_minimum, fewer_than, scored_steps
from tsdfm.pipeline.flow.noise import Noise
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError

ENERGIES = st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=1, max_size=7)  # with ties


def ask(store):
    return counterfactual(store)


@given(ENERGIES, st.data())
def test_expected_minimum_is_the_mean_over_all_subsets(energies, data):
    candidates = data.draw(st.integers(1, len(energies)))
    subsets = itertools.combinations(energies, candidates)
    assert expected_minimum(energies, candidates) == pytest.approx(statistics.fmean(min(s) for s in subsets))


@given(ENERGIES)
def test_expected_minimum_falls_from_the_mean_to_the_least(energies):
    found = [float(expected_minimum(energies, k)) for k in range(1, len(energies) + 1)]
    assert found[0] == pytest.approx(statistics.fmean(energies))
    assert found[-1] == pytest.approx(min(energies))
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found))
    assert expected_minimum(energies[::-1], 1) == pytest.approx(found[0])


def test_many_candidates_don_t_overflow():
    energies = np.arange(127.0)
    # E[min of K' of 0..126] = (127 + 1) / (K' + 1) - 1
    for candidates in (1, 2, 63, 126, 127):
        assert expected_minimum(energies, candidates) == pytest.approx(128 / (candidates + 1) - 1, abs=1e-9)


@pytest.mark.parametrize(("candidates", "asked"), [(2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (9, [1, 2, 4, 8, 9])])
def test_the_candidates_asked_about(candidates, asked):
    assert fewer_than(candidates) == asked


# ---- against loops over single steps

RUNS: dict[str, dict[str, Any]] = {
    "argmin": {"trajectories": 20, "shard_size": 7, "rollout": {"steps": 12}, "shaping": {"candidates": 6}},
    "resample": {"teacher": "uniform", "arm": "shaped", "trajectories": 16, "shard_size": 16, "rollout": {"steps": 10},
                 "shaping": {"candidates": 5, "select": "resample", "beta": 5.0, "tau": 0.2}},
}


def config_of(kind, models, **changes):
    run = {key: dict(value) if isinstance(value, dict) else value for key, value in RUNS[kind].items()}
    if "teacher" in run:
        run["teacher"] = str(models.uniform)
    run["shaping"] |= changes
    return run


@pytest.fixture(scope="module", params=RUNS)
def kept(request, tmp_path_factory, tiny_models):
    """A dataset, its rows as logs, and the answers."""
    out = tmp_path_factory.mktemp(request.param) / "out"
    manifest = make_dataset(out, tiny_models, **config_of(request.param, tiny_models))
    store = open_store(str(out))
    return request.param, store, manifest, logs_of(store, manifest, "shaped"), ask(store)


def steps_of(log, manifest):
    """(step, energies, kept choice, tokens of each candidate) of every scored step, in order."""
    for slot, step in enumerate(manifest.identity.grid.shaped_steps):
        energies = log.step_energy[slot].tolist()
        if not math.isnan(energies[0]):
            columns = log.event_candidates[log.event_step == step].T
            yield step, energies, int(log.step_choice[slot]), [tuple(column) for column in columns.tolist()]


def choice_at(manifest, log, step, energies, tokens, candidates):
    """The run's rule, by hand, among the first K' candidates."""
    shaping = manifest.identity.shaping
    if len(set(tokens[:candidates])) == 1:
        return 0
    if shaping.select == "argmin":
        return energies.index(min(energies[:candidates]))
    noise = Noise(manifest.identity.rollout.seed, torch.tensor([log.trajectory_id]))
    left = float(noise.choice(torch.tensor([0]), torch.tensor([step]))[0])
    weights = [math.exp(-shaping.beta * energy) for energy in energies[:candidates]]
    left *= sum(weights)
    for index, weight in enumerate(weights):
        left -= weight
        if left < 0:
            return index
    return candidates - 1


def entropy(p):
    return -sum(q * math.log2(q) for q in p if q)


def test_fewer_candidates_by_hand(kept):
    _, _, manifest, logs, found = kept
    for row in found.fewer:
        first, every, first_any, every_any, choices, exact, changed = [], [], [], [], [], [], []
        for log in logs:
            moved = False
            for number, (step, energies, choice, tokens) in enumerate(steps_of(log, manifest)):
                other = choice_at(manifest, log, step, energies, tokens, row.candidates)
                least = statistics.fmean(min(s) for s in itertools.combinations(energies, row.candidates))
                every.append(energies[other])
                every_any.append(least)
                if not number:
                    first.append(energies[other])
                    first_any.append(least)
                choices.append(other)
                exact.append(not moved)
                changed.append(other != choice)
                moved |= other != choice
        assert row.first_step.mean == pytest.approx(statistics.fmean(first))
        assert row.first_step.count == len(first) == len(logs)
        assert row.all_steps.mean == pytest.approx(statistics.fmean(every))
        assert row.all_steps.count == len(every) == found.scored
        assert row.changed.mean == pytest.approx(statistics.fmean(changed))
        assert row.exact.mean == pytest.approx(statistics.fmean(exact))
        assert row.entropy.mean == pytest.approx(entropy([n / len(choices) for n in Counter(choices).values()]), abs=1e-12)
        if found.select == "argmin":
            assert row.first_step_any.mean == pytest.approx(statistics.fmean(first_any))
            assert row.all_steps_any.mean == pytest.approx(statistics.fmean(every_any))
        else:
            assert row.first_step_any is row.all_steps_any is None
        # one number per trajectory: the error is the plain one
        assert row.first_step.standard_error == pytest.approx(statistics.stdev(first) / math.sqrt(len(first)))


def test_all_of_the_candidates_are_the_run_itself(kept):
    """Replaying the run's own rule and noise gives back its choices, resampled ones included."""
    _, _, _, _, found = kept
    own = found.fewer[-1]
    assert own.candidates == found.candidates
    assert own.changed.mean == 0
    assert own.exact.mean == 1
    assert own.entropy == found.kept_entropy
    assert own.scored == found.scored


def test_other_rules_by_hand(kept):
    _, _, manifest, logs, found = kept
    betas = [row.beta for row in found.rules]
    assert betas == [None, *sorted({*BETAS, *([5.0] if found.select == "resample" else [])})]
    for row in found.rules:
        energy, changed, bits = [], [], []
        for log in logs:
            for _, energies, choice, _ in steps_of(log, manifest):
                weights = [float(i == energies.index(min(energies))) for i in range(len(energies))]
                if row.beta is not None:
                    least = min(energies)
                    weights = [math.exp(-row.beta * (each - least)) for each in energies]
                    weights = [weight / sum(weights) for weight in weights]
                energy.append(sum(w * e for w, e in zip(weights, energies, strict=True)))
                changed.append(1 - weights[choice])
                bits.append(entropy(weights))
        assert row.all_steps.mean == pytest.approx(statistics.fmean(energy))
        assert row.changed.mean == pytest.approx(statistics.fmean(changed), abs=1e-12)
        assert row.entropy.mean == pytest.approx(statistics.fmean(bits), abs=1e-12)


def test_rules_get_sharper_with_beta(kept):
    rules = {row.beta: row for row in kept[-1].rules}
    by_beta = [rules[beta] for beta in sorted(beta for beta in rules if beta is not None)]
    for soft, sharp in itertools.pairwise(by_beta):
        assert sharp.all_steps.mean <= soft.all_steps.mean
        assert sharp.entropy.mean <= soft.entropy.mean
    assert rules[None].all_steps.mean <= by_beta[-1].all_steps.mean


def test_taus_by_hand(kept):
    _, _, manifest, logs, found = kept
    own = manifest.identity.shaping.tau
    assert [row.tau for row in found.taus] == [i / 8 for i in range(1, 8) if i / 8 > own]
    for row in found.taus:
        energy, changed, late, gain, gain_late = [], [], [], 0.0, 0.0
        for log in logs:
            for step, energies, choice, _ in steps_of(log, manifest):
                shaped = step / found_steps(manifest) >= row.tau
                other = choice if shaped else 0
                energy.append(energies[other])
                changed.append(other != choice)
                late.append(shaped)
                gain += energies[0] - energies[choice]
                gain_late += (energies[0] - energies[choice]) * shaped
        assert row.all_steps.mean == pytest.approx(statistics.fmean(energy))
        assert row.changed.mean == pytest.approx(statistics.fmean(changed))
        assert row.scored_share.mean == pytest.approx(statistics.fmean(late))
        assert row.gain_share.mean == pytest.approx(gain_late / gain)


def found_steps(manifest):
    return manifest.identity.rollout.steps


def test_gains_along_t_by_hand(kept):
    _, _, manifest, logs, found = kept
    steps, grid = found_steps(manifest), manifest.identity.grid
    total = 0.0
    for row in found.bins:
        gains = []
        for log in logs:
            scored = {step: energies[0] - energies[choice] for step, energies, choice, _ in steps_of(log, manifest)}
            rang = set(log.event_step.tolist())
            gains += [scored.get(step, 0.0) for step in grid.shaped_steps
                      if step in rang and row.times.t_start <= step / steps < row.times.t_end]
        assert row.shaped == len(gains)
        if gains:
            assert row.gain.mean == pytest.approx(statistics.fmean(gains), abs=1e-12)
            total += sum(gains)
        else:
            assert row.gain is None
    shares = [row.share for row in found.bins]
    assert sum(shares) == pytest.approx(1.0)
    assert sum(row.gain.mean * row.shaped for row in found.bins if row.gain) == pytest.approx(total)


# ---- against real runs at K'


def real(kind, tmp_path, models, candidates):
    manifest = make_dataset(tmp_path / f"real{candidates}", models, **config_of(kind, models, candidates=candidates))
    return manifest, logs_of(open_store(str(tmp_path / f"real{candidates}")), manifest, "shaped")


@pytest.mark.parametrize("candidates", [2, 4])
def test_a_real_run_at_fewer_candidates_agrees(kept, candidates, tmp_path, tiny_models):
    """Same seed, K' < K: exact at the first scored step and wherever no choice has changed, and within the interval in the mean."""
    kind, _, manifest, logs, found = kept
    other_manifest, others = real(kind, tmp_path, tiny_models, candidates)
    first, exact = [], 0
    for log, other in zip(logs, others, strict=True):
        assert log.trajectory_id == other.trajectory_id
        slots = {step: slot for slot, step in enumerate(other_manifest.identity.grid.shaped_steps)}
        for number, (step, energies, choice, tokens) in enumerate(steps_of(log, manifest)):
            predicted = choice_at(manifest, log, step, energies, tokens, candidates)
            measured = other.step_energy[slots[step]].tolist()
            assert other.step_choice[slots[step]] == predicted
            agree = len(set(tokens[:candidates])) == 1
            assert all(math.isnan(energy) for energy in measured) if agree else measured == energies[:candidates]
            exact += 1
            if not number:
                first.append(energies[predicted] if agree else measured[predicted])
            if predicted != choice:
                break
    row = next(row for row in found.fewer if row.candidates == candidates)
    assert row.exact.mean * found.scored == pytest.approx(exact)
    assert row.first_step.count == len(first) > 10
    assert row.first_step.mean == pytest.approx(statistics.fmean(first))
    assert row.first_step.low <= statistics.fmean(first) <= row.first_step.high
    if row.first_step_any is not None:
        assert row.first_step_any.low <= statistics.fmean(first) <= row.first_step_any.high


def test_blind_is_one_candidate(tmp_path, tiny_models):
    """K' = 1 at the first step is what the blind arm of the same dataset did."""
    manifest = make_dataset(tmp_path / "out", tiny_models, **config_of("argmin", tiny_models))
    store = open_store(str(tmp_path / "out"))
    shaped, blind = (logs_of(store, manifest, arm) for arm in ("shaped", "blind"))
    for log, other in zip(shaped, blind, strict=True):
        step, _, _, tokens = next(steps_of(log, manifest))
        assert tokens[0] == tuple(other.event_token[other.event_step == step].tolist())


def test_first_steps_of_rk4_are_not_called_exact(tmp_path, tiny_models):
    make_dataset(tmp_path / "out", tiny_models, trajectories=3, arm="shaped", rollout={"steps": 4, "solver": "rk4"})
    assert not ask(open_store(str(tmp_path / "out"))).exact_first_step


# ---- shards and faults


def test_shards_don_t_matter(kept, tmp_path, tiny_models):
    kind, _, _, _, found = kept
    make_dataset(tmp_path / "out", tiny_models, **(config_of(kind, tiny_models) | {"shard_size": 3}))
    calls = []
    again = counterfactual(open_store(str(tmp_path / "out")), lambda stage, done, total, note="": calls.append((done, total)))
    assert calls == [(n, len(calls)) for n in range(1, len(calls) + 1)]
    assert len(calls) > 3

    def assert_near(one, two):
        if isinstance(one, dict):
            assert one.keys() == two.keys()
            for name in one:
                assert_near(one[name], two[name])
        elif isinstance(one, list):
            for left, right in zip(one, two, strict=True):
                assert_near(left, right)
        elif isinstance(one, float):
            assert one == pytest.approx(two, rel=1e-6, abs=1e-6)
        else:
            assert one == two

    assert_near(found.model_dump(), again.model_dump())


def test_scored_steps_are_those_of_the_log(kept):
    _, store, manifest, logs, _ = kept
    grid, row = manifest.identity.grid, 0
    for record in manifest.shards:
        table = read_shard(store, record)
        part = table.filter(np.asarray(table.column("arm").to_pylist()) == "shaped")
        scored, _, _ = scored_steps(part, manifest.identity, grid)
        expected = [(i, *step) for i, log in enumerate(logs[row : row + part.num_rows]) for step in steps_of(log, manifest)]
        assert list(zip(scored.row.tolist(), scored.step.tolist(), scored.choice.tolist(), strict=True)) == [
            (i, step, choice) for i, step, _, choice, _ in expected]
        assert scored.differ.tolist() == [next(k for k, t in enumerate(tokens) if t != tokens[0]) for *_, tokens in expected]
        row += part.num_rows


@pytest.mark.parametrize("changes", [
    {"arm": "blind"}, {"shaping": {"candidates": 1}}, {"shaping": {"candidates": 4, "tau": 1.0}},
])
def test_datasets_without_choices_are_refused(changes, tmp_path, tiny_models):
    make_dataset(tmp_path / "out", tiny_models, trajectories=2, **changes)
    with pytest.raises(InputError, match="no choices among candidates"):
        ask(open_store(str(tmp_path / "out")))


def test_a_dataset_whose_candidates_all_agree_is_refused(tmp_path, tiny_models):
    make_dataset(tmp_path / "out", tiny_models, trajectories=2, rollout={"steps": 4, "temperature": 1e-4})
    with pytest.raises(InputError, match="all candidates agreed"):
        ask(open_store(str(tmp_path / "out")))


def test_a_changed_shard_is_refused(tmp_path, tiny_models):
    store, manifest = dataset("mask", tmp_path / "out", tiny_models)
    path = tmp_path / "out" / manifest.shards[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="train-00000"):
        ask(store)
