"""Rows by final energy: the best fraction, the weights, what is refused, and that without either nothing changes."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import copy_dataset, make_dataset, present
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import read_manifest, read_shard
from tsdfm.pipeline.loader.row_filter import energies_of, filter_by_energy
from tsdfm.pipeline.models.student import student_of
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.training.distill import open_start
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.objectives import StudentLoss
from tsdfm.pipeline.training.student_trainer import train_student
from tsdfm.schemas.base import InputError
from tsdfm.schemas.distill import DistillConfig

ENERGY = st.sampled_from([1.0, 1.5, 2.0, 2.25, 3.0])  # few values: ties are common
SHARDS = st.lists(st.lists(ENERGY, min_size=1, max_size=6), min_size=1, max_size=4)


@given(SHARDS, st.floats(0.01, 1.0), st.floats(0, 30))
def test_the_lowest_are_kept_ties_by_id_and_weights_are_as_defined(parts, best, beta):
    """Against a sort of (energy, id) in plain Python."""
    ids = [(energy, shard, row) for shard, part in enumerate(parts) for row, energy in enumerate(part)]
    kept = sorted(ids)[: max(1, round(best * len(ids)))]
    found = filter_by_energy([np.array(part) for part in parts], best, beta)
    assert [(shard, int(row)) for shard, rows in enumerate(found.rows) for row in rows] == sorted((s, r) for _, s, r in kept)
    if not beta:
        assert found.weights is None
        return
    assert found.weights is not None
    lowest = min(energy for energy, _, _ in kept)
    mass = {(s, r): float(np.exp(-beta * (energy - lowest))) for energy, s, r in kept}
    mean = sum(mass.values()) / len(mass)
    for shard, rows in enumerate(found.rows):
        np.testing.assert_allclose(found.weights[shard], [mass[shard, int(row)] / mean for row in rows], rtol=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_models):
    root = tmp_path_factory.mktemp("selected")
    copy_dataset(root / "both", tiny_models)
    make_dataset(root / "plain", tiny_models, compass="none", arm="blind")
    return root


def config(folder, **data):
    optim = {"steps": 1, "batch_size": 8, "log_every": 1}
    return DistillConfig.model_validate({"data": {"paths": [str(folder)], "group": 1} | data, "budgets": {1: 1.0}, "optim": optim})


def logs(folder, arm):
    store = open_store(str(folder))
    tables = [read_shard(store, record) for record in read_manifest(store).shards]
    found = [shards.to_log(table, row) for table in tables for row in range(table.num_rows)]
    return [log for log in found if log.arm == arm]


@pytest.mark.parametrize("arm", ["shaped", "blind"])
def test_a_reader_reads_exactly_the_best_rows_with_their_weights(data, arm):
    """Windows (0, 1] show the final tokens, which name the trajectory."""
    best = sorted(logs(data / "both", arm), key=lambda log: (log.final_energy, log.trajectory_id))[:4]
    mass = np.exp(-2.0 * np.array([log.final_energy - best[0].final_energy for log in best]))
    wanted = {tuple(log.tokens.tolist()): float(weight) for log, weight in zip(best, mass / mass.mean(), strict=True)}
    reader = open_start(config(data / "both", arm=arm, best=0.4, energy_beta=2.0)).reader
    assert reader.rows_per_epoch == 4
    batch = reader.batch(0)  # two epochs of four
    found = [tuple(row) for row in batch.target.tolist()]
    assert sorted(found) == sorted(2 * list(wanted))
    np.testing.assert_allclose(present(batch.row_weights), [wanted[row] for row in found], rtol=1e-5)


def test_a_limit_of_ids_comes_before_the_best(data):
    below = [log for log in logs(data / "both", "shaped") if log.trajectory_id < 5]
    reader = open_start(config(data / "both", best=0.2, trajectories=5)).reader
    assert reader.rows_per_epoch == 1
    assert reader.batch(0).target[0].tolist() == min(below, key=lambda log: log.final_energy).tokens.tolist()


def test_all_of_them_is_what_no_filter_reads(data):
    plain, whole = (open_start(config(data / "both", **extra)).reader.batch(3) for extra in ({}, {"best": 1.0}))
    for name, value in vars(plain).items():
        other = getattr(whole, name)
        assert value is None and other is None if value is None else torch.equal(value, other), name


def test_without_energies_both_are_refused(data):
    for extra in ({"best": 0.5}, {"energy_beta": 1.0}):
        with pytest.raises(InputError, match=r"holds no energies.*compass 'none'"):
            open_start(config(data / "plain", arm="blind", **extra))


@pytest.mark.parametrize("values", [[1.0, None], [1.0, float("nan")], [float("inf"), 1.0]])
def test_a_row_without_an_energy_is_refused(values):
    sink = io.BytesIO()
    pq.write_table(pa.table({"arm": ["blind", "blind"], "final_energy": pa.array(values, pa.float32())}), sink)
    with pytest.raises(InputError, match="here: a row has no final energy"):
        energies_of(pa.BufferReader(sink.getvalue()), "here", "blind")
    with pytest.raises(InputError, match="here: not a readable Parquet file"):
        energies_of(pa.BufferReader(b"no parquet"), "here", "blind")


def test_the_loss_is_the_weighted_mean(data, tmp_path):
    """The first reported loss, computed here row by row from the teacher."""
    settings, lines = config(data / "both", energy_beta=3.0), []
    opened = open_start(settings)
    train_student(opened, tmp_path, Place(0, 1, torch.device("cpu")), lambda step, scalars: lines.append(scalars))
    batch = opened.reader.batch(0)
    assert batch.row_weights is not None
    assert batch.row_weights.min() < 0.9
    nats = StudentLoss(student_of(opened.weights.network), "event")(batch).detach().double()
    wanted = sum(float(w) * float(row.sum()) for w, row in zip(batch.row_weights, nats, strict=True)) / int((batch.target >= 0).sum())
    assert lines[0]["loss"] == pytest.approx(wanted, rel=1e-5)
    assert lines[0]["loss/1"] == pytest.approx(float(nats.sum()) / int((batch.target >= 0).sum()), rel=1e-5)  # of budgets: as it is
