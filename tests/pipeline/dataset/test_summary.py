"""The summary against figures computed one step of one trajectory at a time; reading by id; faulty shards."""

import hashlib
import json
import math
import statistics
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.inspection_data import KINDS, dataset, distinct_by_counting, entropy_by_counting, logs_of
from tests.support import present
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files import tally
from tsdfm.pipeline.dataset.files.tally import bin_of_step
from tsdfm.pipeline.dataset.manifest import digest, read_shard
from tsdfm.pipeline.dataset.summary import read_trajectories, summarise, time_bins
from tsdfm.schemas.base import InputError


@pytest.fixture(scope="module", params=KINDS)
def summarised(request, tmp_path_factory, tiny_models):
    store, manifest = dataset(request.param, tmp_path_factory.mktemp(request.param), tiny_models)
    return store, manifest, summarise(store)


@pytest.fixture
def paired(tmp_path, tiny_models):
    return dataset("mask", tmp_path / "out", tiny_models)


def index_of_bin(summary, step):
    t = step / summary.steps
    return next(index for index, times in enumerate(summary.bins) if times.t_start <= t < times.t_end)


def assert_spread(spread, values):
    assert spread.count == len(values)
    assert spread.mean == pytest.approx(statistics.fmean(values))
    assert spread.deviation == pytest.approx(statistics.stdev(values), abs=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 15, 16, 17, 37, 64, 1000])
def test_bins_tile_the_steps(steps):
    bins, index = time_bins(steps), bin_of_step(steps)
    assert len(bins) == min(16, steps)
    assert bins[0].t_start == 0
    assert bins[-1].t_end == 1
    assert all(left.t_end == right.t_start for left, right in pairwise(bins))
    for step in range(steps):
        assert bins[index[step]].t_start <= step / steps < bins[index[step]].t_end
    assert [each.steps for each in bins] == np.bincount(index).tolist()
    assert max(each.steps for each in bins) - min(each.steps for each in bins) <= 1


def test_every_arm_is_counted_as_by_hand(summarised):
    store, manifest, summary = summarised
    wanted = ["shaped", "blind"] if manifest.identity.arm == "both" else [manifest.identity.arm]
    assert [arm.arm for arm in summary.arms] == wanted
    for arm in summary.arms:
        logs = logs_of(store, manifest, arm.arm)
        assert_spread(arm.events, [len(log.event_step) for log in logs])
        if manifest.identity.prompts is None:
            assert arm.fixed is None
        else:
            assert_spread(arm.fixed, [len(present(log.fixed_positions)) for log in logs])
        texts = [log.tokens.tolist() for log in logs]
        assert_spread(arm.entropy, [entropy_by_counting(text) for text in texts])
        assert (arm.distinct_1, arm.distinct_2, arm.distinct_4) == tuple(
            distinct_by_counting(texts, n) for n in (1, 2, 4))
        if manifest.identity.compass is None:
            assert arm.final_energy is None
        else:
            assert_spread(arm.final_energy, [log.final_energy for log in logs])


def test_jumps_fall_into_their_bins(summarised):
    store, manifest, summary = summarised
    for arm in summary.arms:
        logs = logs_of(store, manifest, arm.arm)
        counts = [0] * len(summary.bins)
        for log in logs:
            for step in log.event_step.tolist():
                counts[index_of_bin(summary, step)] += 1
        steps = [times.steps for times in summary.bins]
        expected = [count / len(logs) / width for count, width in zip(counts, steps, strict=True)]
        assert arm.jumps_per_step == pytest.approx(expected)


def choices_by_hand(logs, shaped_steps, wanted):
    """The choices at the shaped steps for which wanted(step), from single steps of single trajectories."""
    shaped, kept_blind, blind, chosen = 0, 0, [], []
    for log in logs:
        for slot, step in enumerate(shaped_steps):
            sets = log.event_candidates[log.event_step == step]
            if not len(sets) or not wanted(step):
                continue
            shaped += 1
            if all(len(set(each)) == 1 for each in sets.tolist()):
                continue
            choice = int(log.step_choice[slot])
            kept_blind += choice == 0
            blind.append(float(log.step_energy[slot, 0]))
            chosen.append(float(log.step_energy[slot, choice]))
    return shaped, kept_blind, blind, chosen


def assert_choices(found, shaped, kept_blind, blind, chosen):
    assert (found.shaped, found.scored) == (shaped, len(blind))
    assert found.agreed_share == (pytest.approx(1 - len(blind) / shaped) if shaped else None)
    if not blind:
        assert (found.kept_blind_share, found.blind_energy, found.chosen_energy, found.gain) == (None,) * 4
        return
    assert found.kept_blind_share == pytest.approx(kept_blind / len(blind))
    assert found.blind_energy == pytest.approx(statistics.fmean(blind))
    assert found.chosen_energy == pytest.approx(statistics.fmean(chosen))
    gains = [b - c for b, c in zip(blind, chosen, strict=True)]
    assert found.gain == pytest.approx(statistics.fmean(gains), abs=1e-12)


def test_choices_are_those_of_single_steps(summarised):
    store, manifest, summary = summarised
    if manifest.identity.arm == "blind":
        assert summary.selection is None
        return
    logs, steps = logs_of(store, manifest, "shaped"), manifest.shaped_steps
    assert summary.selection.candidates == manifest.identity.shaping.candidates
    assert_choices(summary.selection.total, *choices_by_hand(logs, steps, lambda step: True))
    for index, found in enumerate(summary.selection.bins):
        inside = choices_by_hand(logs, steps, lambda step, index=index: index_of_bin(summary, step) == index)
        assert_choices(found, *inside)


def test_the_choices_hold_every_case(tmp_path, tiny_models):
    """The cases above are not vacuous: some candidates agree, some don't, some choices keep the blind one."""
    store, _ = dataset("mask", tmp_path / "out", tiny_models)
    total = present(summarise(store).selection).total
    assert 0 < total.scored < total.shaped
    assert 0 < present(total.kept_blind_share) < 1
    assert present(total.gain) > 0  # argmin never chooses worse than candidate 0


def test_pairs_are_compared_id_by_id(summarised):
    store, manifest, summary = summarised
    if manifest.identity.arm != "both":
        assert summary.pairs is None
        return
    shaped, blind = (logs_of(store, manifest, arm) for arm in ("shaped", "blind"))
    assert [log.trajectory_id for log in shaped] == [log.trajectory_id for log in blind]
    difference = [present(s.final_energy) - present(b.final_energy) for s, b in zip(shaped, blind, strict=True)]
    assert summary.pairs.pairs == len(difference)
    assert summary.pairs.mean_difference == pytest.approx(statistics.fmean(difference))
    error = statistics.stdev(difference) / math.sqrt(len(difference))
    assert summary.pairs.standard_error == pytest.approx(error)
    assert summary.pairs.share_lower == sum(d < 0 for d in difference) / len(difference)
    assert summary.pairs.share_equal == sum(d == 0 for d in difference) / len(difference)


def test_bytes_are_those_of_the_files(summarised):
    store, _, summary = summarised
    files = sorted((store.local / "data").iterdir())
    tokens = summary.length * sum(pq.read_table(file).num_rows for file in files)
    assert summary.size.tokens == tokens
    assert summary.size.bytes == sum(file.stat().st_size for file in files)
    assert summary.size.bytes_per_token == pytest.approx(summary.size.bytes / tokens)
    columns: dict[str, int] = {}
    for file in files:
        group = pq.ParquetFile(file).metadata.row_group(0)
        for index in range(group.num_columns):
            name = group.column(index).path_in_schema.partition(".")[0]
            columns[name] = columns.get(name, 0) + group.column(index).total_compressed_size
    per_token = {name: count / tokens for name, count in columns.items()}
    assert summary.size.column_bytes_per_token == pytest.approx(per_token)
    assert sum(summary.size.column_bytes_per_token.values()) < summary.size.bytes_per_token


def test_a_summary_survives_json(summarised):
    summary = summarised[2]
    text = json.dumps(summary.model_dump(mode="json"), allow_nan=False)
    assert type(summary).model_validate_json(text) == summary


def test_progress_counts_shards(paired):
    store, manifest = paired
    seen = []
    summarise(store, lambda stage, done, total, note="": seen.append((done, total)))
    assert seen == [(done, len(manifest.shards)) for done in range(1, len(manifest.shards) + 1)]


def test_distinct_n_is_taken_over_the_first_rows_only(paired, monkeypatch):
    store, manifest = paired
    monkeypatch.setattr(tally, "DISTINCT_ROWS", 4)  # ends inside the second shard of three
    for arm in summarise(store).arms:
        first = [log.tokens.tolist() for log in logs_of(store, manifest, arm.arm)[:4]]
        assert arm.distinct_rows == 4
        assert arm.distinct_2 == distinct_by_counting(first, 2)


def test_trajectories_are_read_from_their_shards(paired):
    store, manifest = paired
    found = read_trajectories(store, manifest, [6, 1, 2])  # three in a shard: the first and the last of three
    assert [(log.trajectory_id, log.arm) for log in found] == [
        (number, arm) for number in (1, 2, 6) for arm in ("shaped", "blind")]
    for log in found:
        twin = logs_of(store, manifest, log.arm)[log.trajectory_id]
        assert np.array_equal(log.event_token, twin.event_token)
        assert log.final_energy == twin.final_energy


@pytest.mark.parametrize("number", [-1, 7])
def test_an_unknown_trajectory_is_refused_with_the_range(paired, number):
    store, manifest = paired
    with pytest.raises(InputError, match=rf"trajectory {number}: .* holds 0\.\.6"):
        read_trajectories(store, manifest, [0, number])


def test_a_changed_shard_is_refused(paired):
    store, manifest = paired
    path = store.local / manifest.shards[1].path
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet: its bytes differ"):
        summarise(store)
    assert read_trajectories(store, manifest, [0])  # its neighbours can still be read
    with pytest.raises(InputError, match="its bytes differ"):
        read_trajectories(store, manifest, [3])


def test_an_unsound_row_is_refused_even_if_its_checksum_fits(paired):
    """A shard from elsewhere, with a manifest to match: rows are checked before anything is computed."""
    store, manifest = paired
    record = manifest.shards[0]
    table = read_shard(store, record)
    rows = table.column("event_position").to_pylist()
    rows[2][0] = 10**6
    field = table.schema.field("event_position")
    broken = table.set_column(table.schema.get_field_index(field.name), field, pa.array(rows, field.type))
    data = shards.encode(broken, digest(manifest.identity))
    store.write(record.path, data)
    forged = json.loads(store.read("manifest.json"))
    forged["shards"][0] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    forged["totals"]["bytes"] = sum(shard["bytes"] for shard in forged["shards"])
    store.write("manifest.json", json.dumps(forged).encode())
    with pytest.raises(InputError, match=r"train-00000-of-00003\.parquet: row 2: event_position outside"):
        summarise(store)
