"""Files of several units of work: the bytes are a function of the settings, whoever makes what and whatever is cut; readers see one dataset."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support import make_dataset, tiny_config, tree
from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files import parts
from tsdfm.pipeline.dataset.files.layout import shards_per_file, with_layout
from tsdfm.pipeline.dataset.files.receipts import receipt_path, with_receipt
from tsdfm.pipeline.dataset.manifest import file_at, plan, read_manifest, read_shard
from tsdfm.pipeline.dataset.opened import open_dataset
from tsdfm.pipeline.dataset.summary import summarise
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import LocalStore
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.generate import GenerateConfig

CPU = torch.device("cpu")
SEVERAL = {"trajectories": 22, "shard_size": 3, "shards_per_file": 3}  # eight units in three files; the last of each is short


class OtherWay(InThisProcess):
    """Makes the units from the last to the first."""

    def make(self, work, missing, progress):
        return super().make(work, list(reversed(missing)), progress)


def make(out, models, maker=None, **changes):
    config = GenerateConfig.model_validate(tiny_config(out, models) | SEVERAL | changes)
    return generate_dataset(config, maker=maker or InThisProcess(CPU))


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    out = tmp_path_factory.mktemp("files") / "out"
    make(out, tiny_models)
    return out


def test_a_file_holds_its_units_in_row_groups_with_a_page_index(made):
    manifest = read_manifest(open_store(str(made)))
    assert [record.rows for record in manifest.shards] == [18, 18, 8]
    assert {path.name for path in made.iterdir()} == {"README.md", "manifest.json", "tokenizer.json", "data"}
    for record, rows in zip(manifest.shards, ([6, 6, 6], [6, 6, 6], [6, 2]), strict=True):
        footer = pq.read_metadata(made / record.path)
        assert [footer.row_group(group).num_rows for group in range(footer.num_row_groups)] == rows
        column = footer.row_group(0).column(0)
        assert column.has_column_index
        assert column.has_offset_index
    assert verify(str(made))[1] == []


def test_the_rows_are_those_of_files_of_one_unit(made, tmp_path, tiny_models):
    plain = make_dataset(tmp_path / "plain", tiny_models, trajectories=22, shard_size=3)
    assert "shards_per_file" not in (tmp_path / "plain" / "manifest.json").read_text()
    tables = {out: pa.concat_tables(read_shard(open_store(str(out)), record).replace_schema_metadata()
                                    for record in read_manifest(open_store(str(out))).shards) for out in (made, tmp_path / "plain")}
    rows = [repr(table.to_pylist()) for table in tables.values()]  # NaN equals itself so
    assert rows[0] == rows[1]
    assert plain.totals.events == read_manifest(open_store(str(made))).totals.events
    ours, theirs = (summarise(open_store(str(out))) for out in (made, tmp_path / "plain"))
    assert ours.model_copy(update={"size": theirs.size}) == theirs
    assert [row.trajectory_id for row in open_dataset(str(made)).rows(arm="blind")] == list(range(22))
    assert open_dataset(str(made)).row(17, "blind").trajectory_id == 17
    batches = [Reader.open(DataConfig(paths=[str(out)], group=2, best=best), ReaderSettings(batch_size=8)).batch(1)
               for best in (None, 0.5) for out in (made, tmp_path / "plain")]
    for one, other in (batches[:2], batches[2:]):
        assert torch.equal(one.x_t, other.x_t)
        assert torch.equal(one.target, other.target)


def test_the_order_of_making_does_not_matter(made, tmp_path, tiny_models):
    make(tmp_path / "out", tiny_models, OtherWay(CPU))
    assert tree(tmp_path / "out") == tree(made)


def test_whatever_is_cut_the_bytes_are_the_same_and_nothing_is_left(made, tmp_path, tiny_models, monkeypatch):
    """Killed at a write or a removal, again and again, each time a little later."""
    changed = {name: getattr(LocalStore, name) for name in ("write", "remove")}
    kills, left = 0, [2]

    def cut(name):
        def act(self, *arguments):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return changed[name](self, *arguments)
        return act

    out, done = tmp_path / "out", False
    while not done:
        left[0] = 3 + kills % 4
        with monkeypatch.context() as patch:
            for name in changed:
                patch.setattr(LocalStore, name, cut(name))
            try:
                make(out, tiny_models)
                done = True
            except KeyboardInterrupt:
                kills += 1
        assert kills < 60
    assert kills > 4
    assert tree(out) == tree(made)


def test_a_resume_reads_no_file_and_takes_over_the_receipts(tmp_path, tiny_models, monkeypatch):
    class Stops(InThisProcess):
        def make(self, work, missing, progress):
            super().make(work, missing[:4], progress)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, tiny_models, Stops(CPU))
    assert (tmp_path / "data").is_dir()
    before, opened = LocalStore.open, []
    monkeypatch.setattr(LocalStore, "open", lambda self, path: (opened.append(path), before(self, path))[1])
    report = make(tmp_path, tiny_models)
    assert (report.kept, report.made, report.shards) == (4, 4, 8)
    assert opened == []


def test_a_finished_dataset_is_hashed_and_a_damaged_file_is_made_of_its_units(made, tmp_path, tiny_models):
    make(tmp_path, tiny_models)
    victim = sorted((tmp_path / "data").iterdir())[1]
    data = victim.read_bytes()
    victim.write_bytes(data[:300] + bytes([data[300] ^ 1]) + data[301:])
    assert verify(str(tmp_path))[1][0].path == f"data/{victim.name}"
    report = make(tmp_path, tiny_models)
    assert (report.made, report.kept, report.unsound) == (3, 5, [f"data/{victim.name}"])
    assert tree(tmp_path) == tree(made)


def test_a_fault_names_the_row_of_the_file(made, tmp_path, tiny_models):
    make(tmp_path, tiny_models)
    store = open_store(str(tmp_path))
    manifest = read_manifest(store)
    tables = list(shards.decode_groups(store.open(manifest.shards[0].path), "x"))
    bad = tables[1].set_column(tables[1].schema.get_field_index("text"), tables[1].schema.field("text"),
                               pa.array(["other", *tables[1].column("text").to_pylist()[1:]]))
    from tsdfm.pipeline.dataset.manifest import digest
    (tmp_path / manifest.shards[0].path).write_bytes(
        shards.encode_units([tables[0], bad, tables[2]], digest(manifest.identity), 2))
    faults = verify(str(tmp_path))[1]
    assert (manifest.shards[0].path, 6, "text is not the decoded tokens") in {(each.path, each.row, each.what) for each in faults}


def test_it_grows_and_keeps_whole_files(tmp_path, tiny_models):
    make(tmp_path / "at once", tiny_models, trajectories=40)
    make(tmp_path / "out", tiny_models)
    report = make(tmp_path / "out", tiny_models, trajectories=40)
    assert (report.grown_from, report.kept) == (22, 6)
    ours, theirs = tree(tmp_path / "out"), tree(tmp_path / "at once")
    assert {**ours, "manifest.json": ""} == {**theirs, "manifest.json": ""}


def test_what_a_dataset_has_is_kept_where_nothing_is_asked_for(made, tmp_path, tiny_models):
    asked = read_manifest(open_store(str(made))).identity.model_copy(update={"shards_per_file": None})
    assert with_layout(asked, open_store(str(made))).shards_per_file == 3
    large = asked.model_copy(update={"trajectories": 3001, "shard_size": 3})
    assert with_layout(asked, open_store(str(tmp_path / "new"))).shards_per_file is None
    assert with_layout(large, open_store(str(tmp_path / "new"))).shards_per_file == shards_per_file(large) > 1
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / ".run.json").write_text(json.dumps(large.model_dump(mode="json")))
    assert with_layout(large, open_store(str(tmp_path / "old"))).shards_per_file is None


def test_more_than_ten_thousand_files_lie_in_folders(made):
    identity = read_manifest(open_store(str(made))).identity.model_copy(
        update={"trajectories": 10_001, "shard_size": 1, "shards_per_file": 1})
    paths = [item.path for item in plan(identity)]
    assert paths[0] == "data/000/train-00000-of-10001.parquet"
    assert paths[-1] == file_at(identity, 10_000).path == "data/001/train-10000-of-10001.parquet"
    old = identity.model_copy(update={"shards_per_file": None})
    assert plan(old)[-1].path == "data/train-10000-of-10001.parquet"


def test_row_groups_are_bounded_whatever_a_unit_holds(made, monkeypatch):
    store = open_store(str(made))
    table = next(shards.decode_groups(store.open(read_manifest(store).shards[0].path), "x"))
    per_row = shards.GROUP_BYTES / shards.rows_per_group(table, 2)
    monkeypatch.setattr(shards, "GROUP_BYTES", int(per_row * 2.5))
    assert shards.rows_per_group(table, 2) == 2
    footer = pq.read_metadata(pa.BufferReader(shards.encode_units([table], "x", 2)))
    assert [footer.row_group(group).num_rows for group in range(3)] == [2, 2, 2]


def test_the_loader_decodes_a_unit_and_not_its_file(made, monkeypatch):
    reader = Reader.open(DataConfig(paths=[str(made)], group=1), ReaderSettings(batch_size=2))
    rows, decode = [], shards.decode_groups
    monkeypatch.setattr(shards, "decode_groups", lambda *given: (rows.append(table.num_rows) or table for table in decode(*given)))
    reader.batch(0)
    assert 0 < sum(rows) <= 12  # two units at the most: a batch may straddle them


def test_receipts_of_units_that_are_damaged_are_no_receipts(tmp_path, tiny_models):
    make(tmp_path, tiny_models)
    store, identity = open_store(str(tmp_path)), read_manifest(open_store(str(tmp_path))).identity
    item = plan(identity)[0]
    for unit in parts.units_of(identity, item):
        store.write(receipt_path(unit.path), b"{")
    assert parts.compose(store, identity, item) is None


def test_two_that_finish_a_file_at_once_do_not_harm_it(tmp_path, tiny_models, monkeypatch):
    """The one that comes late finds units gone while it reads them."""
    make(tmp_path, tiny_models)
    store, identity = open_store(str(tmp_path)), read_manifest(open_store(str(tmp_path))).identity
    before = tree(tmp_path)
    assert parts.compose(store, identity, plan(identity)[0]) is None
    assert tree(tmp_path) == before
    assert with_receipt(store, identity, plan(identity)[0]) is None  # no receipt is left of a finished dataset
