"""The reader: every row once, the same batch wherever it is built, shares kept, faults in one line, little held in memory."""

import json
import os
import pickle
import shutil
import signal
import time
import weakref
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import tsdfm.pipeline.loader.batches as reader_module
import tsdfm.pipeline.loader.streams as streams
from tests.support import make_dataset
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import digest, read_manifest, read_shard
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.loader.mixing import LONGEST_PERIOD, Mix, shares_of
from tsdfm.pipeline.loader.windows import Trajectories
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.trajectory import ARROW_SCHEMA

ROLLOUT = {"steps": 8, "batch_size": 16, "top_k": 3}


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    """Folders of small datasets by name: 'mask' (26 rows of each arm in 7 shards), 'uniform', 'long' (N = 16), 'blind', 'foreign'."""
    root = tmp_path_factory.mktemp("datasets")
    changes: dict[str, dict[str, Any]] = {
        "mask": {"trajectories": 26}, "long": {"trajectories": 7, "rollout": ROLLOUT | {"steps": 16, "seed": 5, "top_k": 0}},
        "uniform": {"trajectories": 9, "teacher": str(tiny_models.uniform), "compass": "none", "arm": "blind"},
        "blind": {"arm": "blind", "compass": "none", "rollout": ROLLOUT | {"seed": 7}},
        "foreign": {"arm": "blind", "compass": "none", "teacher": str(tiny_models.foreign)},
    }
    for name, change in changes.items():
        make_dataset(root / name, tiny_models, **{"rollout": ROLLOUT} | change)
    return root


@pytest.fixture
def copy(made, tmp_path):
    """A copy of a dataset that a test may damage."""
    def copied(name):
        return shutil.copytree(made / name, tmp_path / name)

    return copied


def open_reader(*paths, objective="endpoint", budgets=None, batch_size=4, seed=0, **data):
    config = DataConfig(paths=list(map(str, paths)), **{"group": 2} | data)
    return Reader.open(config, ReaderSettings(objective=objective, beta=8.0, budgets=budgets or {1: 1.0, 2: 1.0, 8: 2.0},
                       batch_size=batch_size, seed=seed))


def whole(*paths, **options):
    """A reader whose every window is (0, 1], so that the targets are the final tokens and name the row."""
    return open_reader(*paths, budgets={1: 1.0}, **options)


def logs_of(folder, arm):
    store = open_store(str(folder))
    tables = [read_shard(store, record) for record in read_manifest(store).shards]
    logs = [shards.to_log(table, row) for table in tables for row in range(table.num_rows)]
    return [log for log in logs if log.arm == arm]


def names_of(*folders, arm="shaped"):
    """Final tokens -> (dataset, trajectory id); they must all differ for a test to follow rows."""
    names = {tuple(log.tokens.tolist()): (folder.name, log.trajectory_id) for folder in folders for log in logs_of(folder, arm)}
    assert len(names) == sum(len(logs_of(folder, arm)) for folder in folders)
    return names


def read_rows(batches, names):
    return [names[tuple(row)] for batch in batches for row in batch.target.tolist()]


def assert_same(one, other):
    for name, value in vars(one).items():
        if value is None:
            assert getattr(other, name) is None, name
        else:
            assert torch.equal(value, getattr(other, name)), name


# ----------------------------------------------------------------- order

@pytest.mark.parametrize("arm", ["shaped", "blind"])
@pytest.mark.parametrize("group", [1, 2, 100])
def test_every_row_once_per_epoch(made, arm, group):
    """26 rows, batches of 4: batches straddle epochs, and with one shard a group also three groups."""
    names = names_of(made / "mask", arm=arm)
    reader = whole(made / "mask", arm=arm, group=group)
    assert reader.rows_per_epoch == 26
    rows = read_rows(reader.batches(0, 26), names)
    epochs = [rows[i : i + 26] for i in range(0, len(rows), 26)]
    assert len(epochs) == 4
    for epoch in epochs:
        assert sorted(epoch) == sorted(names.values())
    assert len(set(map(tuple, epochs))) == 4  # each in an order of its own
    assert epochs[0] != sorted(epochs[0])


def test_rows_of_several_shards_meet_in_a_batch(made):
    reader = whole(made / "mask", group=7, batch_size=13)
    rows = read_rows(reader.batches(0, 1), names_of(made / "mask"))
    assert len({number // 4 for _, number in rows}) >= 3


@pytest.mark.parametrize(("world", "loader_workers"), [(1, 2), (2, 0), (2, 3), (4, 0)])
def test_every_row_once_over_ranks_and_loader_workers(made, world, loader_workers):
    names = names_of(made / "mask")
    ranks = [list(whole(made / "mask").batches(0, 13, rank, world, loader_workers)) for rank in range(world)]
    rows = [read_rows([batch], names) for step in range(13) for batch in (ranks[rank][step] for rank in range(world))]
    flat = [row for part in rows for row in part]
    assert sorted(flat[:26]) == sorted(flat[26:]) == sorted(names.values())


@pytest.mark.parametrize("objective", ["event", "candidates", "endpoint", "forward_kl"])
def test_the_ranks_parts_are_the_batch(made, objective):
    paths = (made / "mask",) if objective == "forward_kl" else (made / "mask", made / "long")
    for step in (0, 5, 99):
        alone = open_reader(*paths, objective=objective, batch_size=12).batch(step)
        for world in (2, 3, 12):
            for rank in range(world):
                part = open_reader(*paths, objective=objective, batch_size=12).batch(step, rank, world)
                assert_same(part, alone.rows(slice(rank * 12 // world, (rank + 1) * 12 // world)))


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_resuming_gives_the_exact_next_batch(made, loader_workers):
    through = list(open_reader(made / "mask", made / "long", objective="candidates").batches(0, 20))
    for start in (1, 6, 13):
        fresh = open_reader(made / "mask", made / "long", objective="candidates")
        resumed = list(fresh.batches(start, 20, loader_workers=loader_workers))
        assert len(resumed) == 20 - start
        for one, other in zip(resumed, through[start:], strict=True):
            assert_same(one, other)


def test_a_far_update_is_as_near_as_the_first(made):
    reader = open_reader(made / "mask", made / "long", weights=[0.123456, 0.654321])
    started = time.perf_counter()
    reader.batch(10**9)
    assert time.perf_counter() - started < 2


def test_another_seed_reads_in_another_order_at_other_times(made):
    names = names_of(made / "mask")
    orders = {tuple(read_rows(whole(made / "mask", seed=seed).batches(0, 6), names)) for seed in range(4)}
    assert len(orders) == 4
    times = {tuple(open_reader(made / "mask", seed=seed, batch_size=16).batch(0).t.tolist()) for seed in range(4)}
    assert len(times) == 4


def test_random_numbers_stay_over_versions():
    """Resuming after an upgrade of numpy must read the same rows: these come from its raw Philox output alone."""
    assert streams.permutation(8, 0, streams.SHARDS, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    np.testing.assert_array_equal(streams.uniform(2, 3, streams.POINTS, 10**9), [float.fromhex("0x1.6d729a6d9c18ep-1"), float.fromhex("0x1.6aa0e6971ab0ap-2")])


def test_only_ids_below_the_limit(made):
    names = names_of(made / "mask")
    reader = whole(made / "mask", trajectories=6)
    assert reader.rows_per_epoch == 6
    rows = read_rows(reader.batches(0, 3), names)
    assert sorted(rows[:6]) == [("mask", number) for number in range(6)]


# ----------------------------------------------------------------- windows

def test_budgets_and_times_are_drawn_by_weight_and_evenly(made):
    reader = open_reader(made / "mask", budgets={1: 1.0, 4: 2.0, 8: 1.0}, batch_size=32, group=8)
    pairs: Counter[Any] = Counter()
    for batch in reader.batches(0, 250):
        counts = Counter(batch.dt.tolist())
        assert counts == {1.0: 8, 0.25: 16, 0.125: 8}  # stratified: exact in every batch
        pairs.update(zip(batch.dt.tolist(), batch.t.tolist(), strict=True))
    assert set(pairs) == {(1 / n, j / n) for n in (1, 4, 8) for j in range(n)}
    for n, rows in ((4, 4000), (8, 2000)):
        expected = rows / n
        statistic = sum((pairs[1 / n, j / n] - expected) ** 2 / expected for j in range(n))
        assert statistic < 3 * n  # chi-square of n - 1: beyond 3 n about once in 10^4


def test_datasets_of_different_n_meet_at_the_same_times(made):
    """Each row is some trajectory's state at its t, and its target that trajectory's, whatever N it was rolled out with."""
    reader = open_reader(made / "mask", made / "long", objective="event", batch_size=33)
    logs = [(8, log) for log in logs_of(made / "mask", "shaped")] + [(16, log) for log in logs_of(made / "long", "shaped")]
    mask_id = reader.manifests[0].identity.teacher.mask_id
    seen = set()
    for batch in reader.batches(0, 4):
        for x_t, t, dt, target in zip(*(getattr(batch, name).tolist() for name in ("x_t", "t", "dt", "target")), strict=True):
            owners = [(steps, log) for steps, log in logs
                      if log.state_after(round(t * steps) - 1, mask_id).tolist() == x_t and target == [
                          after if after != before else -1 for before, after in
                          zip(x_t, log.state_after(round((t + dt) * steps) - 1, mask_id).tolist(), strict=True)]]
            assert owners
            seen |= {steps for steps, _ in owners}
    assert seen == {8, 16}


def test_a_uniform_dataset_is_read_too(made):
    batch = open_reader(made / "uniform", arm="blind", objective="candidates").batch(0)
    assert batch.candidates.shape[2] == 1
    assert torch.equal(batch.weights[..., 0], (batch.target >= 0).float())
    assert torch.equal(batch.candidates[..., 0], batch.target.clamp(min=0))


# ----------------------------------------------------------------- mixing

@given(shares=st.lists(st.integers(1, 40), min_size=1, max_size=7))
def test_shares_hold_to_within_one_row_at_any_time(shares):
    mix, period = Mix(shares), sum(shares)
    owner, place = mix.rows(np.arange(3 * period))
    counts = np.cumsum(owner[:, None] == np.arange(len(shares)), axis=0)
    ideal = np.arange(1, 3 * period + 1)[:, None] * np.array(shares) / period
    assert np.abs(counts - ideal).max() < 1
    assert (counts[-1] == 3 * np.array(shares)).all()
    np.testing.assert_array_equal(place, counts[np.arange(len(owner)), owner] - 1)  # no place of a stream lost or given twice


@pytest.mark.parametrize(("weights", "shares"), [
    ([0.1, 0.2, 0.7], [1, 2, 7]), ([3], [1]), ([1.0, 1.0], [1, 1]), ([26, 7], [26, 7]), ([2e-3, 1e-3], [2, 1])])
def test_simple_weights_are_kept_exactly(weights, shares):
    assert shares_of(weights) == shares


def test_other_weights_are_kept_to_a_65536th():
    weights = [0.123456789, 1 / 3, 1e-12, 2.71828182845]
    shares = np.array(shares_of(weights))
    assert shares.min() == 1
    assert abs(shares.sum() - LONGEST_PERIOD) < 4
    np.testing.assert_allclose(shares / shares.sum(), np.array(weights) / sum(weights), atol=2 / LONGEST_PERIOD)
    Mix(shares.tolist())


@pytest.mark.parametrize(("weights", "share"), [(None, 26 / 33), ([1.0, 1.0], 1 / 2), ([0.1, 0.9], 1 / 10)])
def test_rows_come_in_their_shares(made, weights, share):
    names = names_of(made / "mask", made / "long")
    rows = read_rows(whole(made / "mask", made / "long", weights=weights).batches(0, 60), names)
    from_mask = np.cumsum([name == "mask" for name, _ in rows])
    assert np.abs(from_mask - share * np.arange(1, len(rows) + 1)).max() < 1
    for name, size in (("mask", 26), ("long", 7)):
        mine = [number for owner, number in rows if owner == name]
        for first in range(0, len(mine) - size + 1, size):
            assert sorted(mine[first : first + size]) == list(range(size))


def test_facts_are_json_and_name_what_was_read(made):
    reader = open_reader(made / "mask", made / "long", weights=[1, 3], seed=9)
    facts = reader.facts().model_dump(mode="json")
    assert facts["datasets"] == [
        {"path": str(made / name), "uri": str(made / name), "identity": digest(manifest.identity), "rows": rows, "share": share}
        for name, manifest, rows, share in zip(["mask", "long"], reader.manifests, [26, 7], [1, 3], strict=True)]
    assert (facts["seed"], facts["arm"]) == (9, "shaped")
    assert reader.vocabulary.fingerprint == reader.manifests[1].identity.tokenizer


# ----------------------------------------------------------------- memory and processes

def test_two_groups_at_a_time_and_each_shard_decoded_once_an_epoch(made, monkeypatch):
    alive: weakref.WeakSet[Trajectories] = weakref.WeakSet()
    decoded, concatenate, decode = [], Trajectories.concatenate, shards.decode_groups

    def counted(parts):
        assert len(alive) < 2  # the older one went before
        group = concatenate(parts)
        alive.add(group)
        return group

    def noted(file, where, groups):
        decoded.append(where)
        return decode(file, where, groups)

    monkeypatch.setattr(Trajectories, "concatenate", counted)
    monkeypatch.setattr(shards, "decode_groups", noted)
    reader = whole(made / "mask", group=2, batch_size=26)
    for epoch in range(5):
        before = len(decoded)
        reader.batch(epoch)
        fresh = Counter(decoded[before:])
        assert len(alive) <= 2
        assert set(fresh.values()) == {1}
        assert len(fresh) >= 7 - 4  # what is left of the last epoch's groups may serve again
    assert len(set(decoded)) == 7


def test_a_dataset_of_one_group_is_decoded_once(made, monkeypatch):
    decoded, decode = [], shards.decode_groups
    monkeypatch.setattr(shards, "decode_groups", lambda file, where, groups: decoded.append(where) or decode(file, where, groups))
    list(whole(made / "mask", group=8, batch_size=13).batches(0, 20))
    assert len(decoded) == len(set(decoded)) == 7


def test_loader_workers_leave_the_global_generator_alone(made):
    """Dropout draws from it: a run must not depend on how many processes build its batches."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(open_reader(made / "mask").batches(0, 2, loader_workers=1))
    assert torch.equal(torch.rand(3), expected)


def test_an_interrupt_is_not_the_loaders_business(made, monkeypatch):
    build = Reader.batch

    def interrupted(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return build(self, *arguments)

    expected = list(open_reader(made / "mask").batches(0, 4))
    monkeypatch.setattr(Reader, "batch", interrupted)
    for one, other in zip(open_reader(made / "mask").batches(0, 4, loader_workers=2), expected, strict=True):
        assert_same(one, other)


def test_a_killed_loader_worker_is_one_line(made, monkeypatch):
    monkeypatch.setattr(Reader, "batch", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkError, match=r"loader worker was killed.*data\.group"):
        list(open_reader(made / "mask").batches(0, 4, loader_workers=2))


def test_an_abandoned_loader_leaves_no_process(made):
    import gc

    import psutil

    before = set(psutil.Process().children())
    batches = open_reader(made / "mask").batches(0, 50, loader_workers=2)
    next(batches)
    assert len(set(psutil.Process().children()) - before) >= 2
    batches.close()
    gc.collect()
    _, left = psutil.wait_procs(set(psutil.Process().children()) - before, timeout=10)
    assert not left


def test_a_reader_travels_without_its_groups(made):
    reader = open_reader(made / "mask", made / "long")
    empty = len(pickle.dumps(reader))
    batch = reader.batch(3)
    sent = pickle.dumps(reader)
    assert len(sent) == empty
    assert_same(pickle.loads(sent).batch(3), batch)


def test_no_part_of_a_batch_that_does_not_divide(made):
    with pytest.raises(ValueError, match="batch of 4 has no part 0 of 3"):
        open_reader(made / "mask").batch(0, 0, 3)
    with pytest.raises(ValueError, match="no part 2 of 2"):
        open_reader(made / "mask").batch(0, 2, 2)


# ----------------------------------------------------------------- other filesystems

@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tsdfm-pipeline"


def upload(folder, uri):
    store = open_store(uri)
    for file in folder.rglob("*"):
        if file.is_file():
            store.write(file.relative_to(folder).as_posix(), file.read_bytes())
    return store


def test_a_memory_uri_serves_like_the_folder(made, cache):
    upload(made / "mask", "memory://reader/mask")
    for one, other in zip(open_reader("memory://reader/mask").batches(0, 8), open_reader(made / "mask").batches(0, 8), strict=True):
        assert_same(one, other)
    assert sorted(file.name for file in cache.iterdir()) == sorted(
        record.sha256 for record in open_reader(made / "mask").manifests[0].shards)


def test_remote_shards_are_fetched_once(made, cache):
    store = upload(made / "mask", "memory://once/mask")
    expected = list(open_reader(store.uri).batches(0, 8))
    kept = {file.name: file.read_bytes() for file in cache.iterdir()}
    first, *others = sorted(kept)
    (cache / first).write_bytes(kept[first][:-1] + b"?")
    list(open_reader(store.uri).batches(0, 8))
    assert {file.name: file.read_bytes() for file in cache.iterdir()} == kept  # the damaged copy was fetched anew
    for name in store.names("data"):
        store.remove(f"data/{name}")
    for one, other in zip(open_reader(store.uri).batches(0, 8), expected, strict=True):
        assert_same(one, other)
    (cache / first).unlink()
    with pytest.raises(InputError, match="this shard is missing"):
        list(open_reader(store.uri).batches(0, 8))
    assert len(others) == 6


def test_without_a_cache_folder_shards_are_still_read(made, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    upload(made / "mask", "memory://nocache/mask")
    assert_same(open_reader("memory://nocache/mask").batch(2), open_reader(made / "mask").batch(2))


def test_a_wrong_remote_shard_is_not_kept(made, cache):
    store = upload(made / "mask", "memory://wrong/mask")
    name = store.names("data")[0]
    store.write(f"data/{name}", b"PAR1")
    with pytest.raises(InputError, match=f"{name}: its bytes differ"):
        list(open_reader(store.uri).batches(0, 8))
    assert not (cache / read_manifest(store).shards[0].sha256).exists()
    assert all(file.stat().st_size > 4 for file in cache.glob("*"))


def test_loader_workers_of_a_remote_dataset_are_spawned(made, cache, monkeypatch):
    """fsspec's own name for local files stands in for an object store: it can be opened in another process."""
    uri = f"local://{made / 'mask'}"
    assert open_store(uri).local is None
    contexts = []
    monkeypatch.setattr(reader_module, "DataLoader", lambda *arguments, **options: (
        contexts.append(options["multiprocessing_context"]), DataLoader(*arguments, **options))[1])
    expected = list(open_reader(made / "mask").batches(0, 3))
    for one, other in zip(open_reader(uri).batches(0, 3, loader_workers=1), expected, strict=True):
        assert_same(one, other)
    assert contexts == ["spawn"]


# ----------------------------------------------------------------- faults

def refused(*paths, steps=8, loader_workers=0, **options):
    """The one line that reading ends with."""
    with pytest.raises(InputError) as caught:
        list(open_reader(*paths, **options).batches(0, steps, loader_workers=loader_workers))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_manifest(folder, change):
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_changed_byte_is_found_at_the_first_read(copy, loader_workers):
    folder = copy("mask")
    file = sorted((folder / "data").iterdir())[3]
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert refused(folder, loader_workers=loader_workers).startswith(
        f"{folder}/data/{file.name}: its bytes differ from the manifest's checksum; ")


@pytest.mark.parametrize("loader_workers", [0, 2])
def test_a_missing_shard(copy, loader_workers):
    folder = copy("mask")
    file = sorted((folder / "data").iterdir())[1]
    file.unlink()
    assert refused(folder, loader_workers=loader_workers).startswith(f"{folder}/data/{file.name}: this shard is missing; ")


def test_an_unsound_row_whose_checksum_was_mended(copy):
    """The manifest agrees with the file, but its rows break an invariant."""
    import hashlib

    import pyarrow as pa

    folder = copy("mask")
    file = sorted((folder / "data").iterdir())[0]
    table, owner = shards.decode(file.read_bytes(), "x")
    rows = table.to_pylist()
    rows[2]["event_token"][0] = (rows[2]["event_token"][0] + 1) % 50
    data = shards.encode(pa.Table.from_pylist(rows, schema=ARROW_SCHEMA), owner)
    file.write_bytes(data)

    def mend(data):
        def change(manifest):
            manifest["shards"][0].update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
            manifest["totals"]["bytes"] = sum(shard["bytes"] for shard in manifest["shards"])
        return change

    edit_manifest(folder, mend(data))
    assert refused(folder).startswith(f"{folder}/data/{file.name}: row 2: ")
    foreign = shards.encode(table, "ab" * 32)
    file.write_bytes(foreign)
    edit_manifest(folder, mend(foreign))
    assert "belongs to another dataset" in refused(folder)


def test_no_dataset_and_none_that_is_finished(copy, tmp_path):
    folder = copy("mask")
    identity = json.loads((folder / "manifest.json").read_text())["identity"]
    (folder / "manifest.json").unlink()
    assert refused(folder).startswith(f"{folder}: no dataset there")
    (folder / ".run.json").write_text(json.dumps(identity))
    assert refused(folder).startswith(f"{folder}: this dataset is unfinished; run its generate command again")
    assert "no dataset given" in refused()
    assert "no such filesystem" in refused("nonsense://x/y")


def test_a_shard_that_the_manifest_does_not_name(copy):
    folder = copy("mask")

    def rename(manifest):
        manifest["shards"][2]["path"] = "data/other.parquet"

    assert "data/train-00002-of-00007.parquet: not in the manifest" in refused(edit_manifest(folder, rename))


@pytest.mark.parametrize(("field", "value"), [
    ("tokenizer", "ab" * 32), ("teacher.source", "uniform"), ("teacher.vocab_size", 301), ("teacher.mask_id", 7),
    ("teacher.kappa_exponent", 2.0), ("rollout.length", 8)])
def test_datasets_that_differ_in_meaning_are_not_mixed(made, copy, field: str, value):
    folder = copy("mask")

    def change(whole):
        manifest = whole
        *path, last = ["identity", *field.split(".")]
        for name in path:
            manifest = manifest[name]
        manifest[last] = value
        if field == "rollout.length":
            whole["totals"]["tokens"] = whole["totals"]["rows"] * value

    line = refused(made / "mask", edit_manifest(folder, change))
    assert line.startswith(f"{folder}: can't be mixed with {made / 'mask'}; give datasets that agree in: {field} (there ")
    assert ";" not in line.partition("agree in")[2]  # that field and no other


def test_real_datasets_of_other_sources_and_vocabularies_are_not_mixed(made):
    assert "teacher.source (there \"mask\", here \"uniform\")" in refused(made / "blind", made / "uniform", arm="blind")
    line = refused(made / "blind", made / "foreign", arm="blind")
    assert "tokenizer (there " in line
    assert "teacher.vocab_size" in line
    open_reader(made / "blind", made / "mask", arm="blind").batch(0)  # another teacher's seed and compass do no harm


def test_an_arm_that_was_not_made(made):
    assert refused(made / "mask", made / "blind").startswith(
        f"{made / 'blind'}: holds no 'shaped' rows, it was generated with arm 'blind'; set data.arm")


def test_a_budget_that_does_not_divide_the_rollouts_steps(made):
    line = refused(made / "long", made / "mask", budgets={1: 1.0, 16: 1.0, 32: 1.0})
    assert line == (f"{made / 'long'}: budgets: 32 does not divide the N = 16 steps of its rollout; give budgets among 1, 2, 4, 8, 16")
    assert f"{made / 'mask'}: budgets: 16 does not divide the N = 8 steps" in refused(
        made / "long", made / "mask", budgets={16: 1.0})


@pytest.mark.parametrize("objective", ["forward_kl", "reverse_kl"])
def test_no_top_k(made, objective, copy):
    assert refused(made / "mask", made / "long", objective=objective) == (
        f"{made / 'long'}: holds no top-k, which objective '{objective}' needs; generate it with --top-k 16, "
        "or choose another objective")
    other = edit_manifest(copy("mask"), lambda m: m["identity"]["rollout"].update(top_k=2))
    assert "rollout.top_k (there 3, here 2)" in refused(made / "mask", other, objective=objective)


def test_a_changed_tokenizer(copy):
    folder = copy("mask")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer\.json: missing"):
        open_reader(folder).vocabulary  # noqa: B018


@pytest.mark.parametrize(("steps", "wanted"), [([8], [1, 2, 4, 8]), ([12, 8], [1, 2, 4]), ([7], [1]), ([256], [1, 2, 4, 8, 16, 32, 64])])
def test_budgets_that_are_not_named_are_the_powers_of_two_that_divide_every_dataset(tmp_path, tiny_models, steps, wanted):
    paths = []
    for n in steps:
        make_dataset(tmp_path / str(n), tiny_models, arm="blind", trajectories=2, shard_size=2, rollout={"steps": n, "batch_size": 2})
        paths.append(str(tmp_path / str(n)))
    reader = Reader.open(DataConfig(paths=paths, arm="blind"), ReaderSettings(objective="event", beta=1.0, budgets=None, batch_size=4, seed=0))
    assert reader.budget_shares == dict.fromkeys(wanted, 1.0)
    assert set((1 / reader.batch(0).dt).round().int().tolist()) <= set(wanted)
