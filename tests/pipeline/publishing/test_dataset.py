"""Datasets published to a loopback Hub by the real client, and read back by the real readers."""

import json
import random
import shutil
import subprocess
import sys
from functools import partial

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from tests.loopback_hub import TOKEN, environment, folder_files
from tests.support import copy_dataset, make_dataset, present, tree
from tsdfm.pipeline.dataset.card import read_front_matter
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.publishing import upload as hub_upload
from tsdfm.pipeline.publishing.dataset import publish_dataset
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.publish import RECEIPT_FILE, PublishConfig, Receipt
from tsdfm.schemas.trajectory import ARROW_SCHEMA

KEY = ("dataset", "team/runs")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_models):
    out = tmp_path_factory.mktemp("made") / "out"
    copy_dataset(out, tiny_models)
    return out


@pytest.fixture
def out(made, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    return tmp_path / "out"


def publish(out, progress=lambda *_: None, **changes):
    config = PublishConfig.model_validate({"out": str(out), "repo": "team/runs", "license": "cc-by-4.0"} | changes)
    return publish_dataset(open_store(str(out)), config, progress)


def refused(action, kind=InputError):
    with pytest.raises(kind) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert TOKEN not in line
    assert "://" not in line
    return line


def test_the_repository_holds_the_dataset(hub, out):
    receipt = publish(out)
    files = hub.repos[KEY].files
    local = folder_files(out)
    assert {path: files[path] for path in local if path.startswith("data/")} == {
        path: data for path, data in local.items() if path.startswith("data/")}
    assert receipt == Receipt.model_validate_json(local[RECEIPT_FILE])
    assert receipt.revision == hub.repos[KEY].head
    assert RECEIPT_FILE not in files
    assert len(hub.repos[KEY].commits) == 2  # the Hub's own and one of ours: readers see nothing or all
    assert receipt.bytes == sum(len(data) for path, data in files.items() if path != ".gitattributes")
    manifest = json.loads(files["manifest.json"])
    assert manifest["teacher"] is None  # a folder of this machine
    assert manifest | {"teacher": 0} == json.loads(local["manifest.json"]) | {"teacher": 0}
    assert files["energies.png"].startswith(b"\x89PNG")
    assert not hub.repos[KEY].private


def test_the_card_is_for_readers(hub, out):
    from huggingface_hub import DatasetCard

    publish(out)
    text = hub.repos[KEY].files["README.md"].decode()
    card = DatasetCard(text)
    assert card.data["license"] == "cc-by-4.0"
    assert card.data["size_categories"] == ["n<1K"]
    assert [each["config_name"] for each in card.data["configs"]] == ["default", "arms", "shaped", "blind"]
    assert card.data["trajectories"] == read_front_matter((out / "README.md").read_text())["trajectories"]
    for name in ARROW_SCHEMA.names:
        assert f"`{name}`" in text
    for paper in ("2605.07924", "2509.20624", "2407.15595", "2410.21357"):
        assert f"eprint = {{{paper}}}" in text
    assert 'load_dataset("team/runs", split="train")' in text
    assert str(out) not in text


def test_the_card_of_continuations_says_what_was_given(hub, tmp_path, tiny_models):
    (tmp_path / "p.txt").write_text("the quick\nmasks\n")
    manifest = make_dataset(tmp_path / "given", tiny_models, prompts=str(tmp_path / "p.txt"), per_prompt=3, trajectories=None)
    publish(tmp_path / "given")
    card = hub.repos[KEY].files["README.md"].decode()
    assert f"| prompts | each given to 3 trajectories; tokens `{present(manifest.identity.prompts).sha256[:16]}` (sha256) |" in card
    assert "These figures are of whole texts, with what was given of them: " in card


def test_a_published_dataset_is_sound_and_trains_like_the_folder(hub, out):
    receipt = publish(out)
    assert verify(open_store(receipt.uri), lambda *_: None)[1] == []

    def batches(path):
        data = DataConfig(paths=[path])
        return list(Reader.open(data, ReaderSettings(objective="candidates", beta=1.0, budgets={1: 1.0, 4: 1.0}, batch_size=4, seed=0)).batches(0, 6))

    for one, other in zip(batches(receipt.uri), batches(str(out)), strict=True):
        assert torch.equal(one.x_t, other.x_t)
        assert torch.equal(one.weights, other.weights)


LOAD = """
import json, sys
from datasets import load_dataset
first, second = sys.argv[1:]
whole = load_dataset("team/runs")
arms = load_dataset("team/runs", "arms")
old = load_dataset("team/runs", revision=first, split="train")
streamed = load_dataset("team/runs", split="train", streaming=True, revision=second)
blind = list(load_dataset("team/runs", "arms", split="blind", streaming=True))
print(json.dumps({
    "rows": {split: table.num_rows for split, table in whole.items()}, "arms": {arm: sorted(set(table["arm"])) for arm, table in arms.items()},
    "arm_rows": {arm: sorted(table["trajectory_id"]) for arm, table in arms.items()}, "old": old.num_rows,
    "same": list(map(str, streamed)) == list(map(str, whole["train"])), "blind": list(map(str, blind)) == list(map(str, arms["blind"])),
    "features": {name: str(feature) for name, feature in whole["train"].features.items()},
    "union": sorted(map(str, arms["shaped"])) + sorted(map(str, arms["blind"])) == sorted(map(str, whole["train"].filter(lambda r: r["arm"] == "shaped")))
        + sorted(map(str, whole["train"].filter(lambda r: r["arm"] == "blind")))}))
"""


def test_datasets_loads_it_whole_streaming_by_arm_and_pinned(hub, out, tmp_path, tiny_models):
    first = publish(out)
    make_dataset(tmp_path / "more", tiny_models, trajectories=12)
    second = publish(tmp_path / "more")
    done = subprocess.run([sys.executable, "-c", LOAD, first.revision, second.revision], env=environment(hub, tmp_path / "other"),
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["rows"] == {"train": 24}
    assert found["old"] == 20
    assert found["arms"] == {"shaped": ["shaped"], "blind": ["blind"]}
    assert found["arm_rows"] == {"shaped": list(range(12)), "blind": list(range(12))}
    assert found["same"]
    assert found["blind"]
    assert found["union"]
    assert list(found["features"]) == ARROW_SCHEMA.names
    assert "int8" in found["features"]["step_choice"]


def test_other_readers_open_the_files(hub, tmp_path, tiny_models):
    make_dataset(tmp_path / "top", tiny_models, rollout={"steps": 8, "batch_size": 4, "top_k": 3})
    publish(tmp_path / "top")
    for path, data in hub.repos[KEY].files.items():
        (tmp_path / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(data)
    for files, rows in (("data/*.parquet", 20), ("arms/shaped-*.parquet", 10), ("arms/blind-*.parquet", 10)):
        glob = str(tmp_path / "copy" / files)
        table = present(duckdb.sql(f"select * from '{glob}'"))
        assert table.columns == ARROW_SCHEMA.names
        assert table.types[ARROW_SCHEMA.get_field_index("step_choice")] == "TINYINT[]"
        assert len(table.fetchall()) == rows
        kept = present(duckdb.sql(f"select count(*) from (select unnest(event_topk_logprobs) as l from '{glob}') where l <= 0"))
        assert kept.fetchall() == [(rows * 16 * 3,)]
        frame = pl.read_parquet(glob)
        assert frame.columns == ARROW_SCHEMA.names
        assert frame.schema["tokens"] == pl.List(pl.Int32)
        assert frame.schema["step_energy"] == pl.List(pl.Float32)
        assert frame["event_topk_logprobs"].explode().len() == rows * 16 * 3
        assert frame.height == rows
    frame = pd.read_parquet(tmp_path / "copy" / "data", dtype_backend="pyarrow")
    for field in ARROW_SCHEMA:
        found = frame[field.name].dtype.pyarrow_dtype
        assert (found.value_type if pa.types.is_list(found) else found) == (field.type.value_type if pa.types.is_list(field.type) else field.type)
    assert len(frame) == 20


def test_a_rerun_sends_nothing(hub, out):
    first = publish(out)
    before = tree(out)
    hub.calls.clear()
    again = publish(out)
    assert (again.revision, again.changed_files, again.changed_bytes, again.sent_anything) == (first.revision, 0, 0, False)
    assert tree(out) == before
    assert not [call for call in hub.calls if "PUT" in call or "/commit/" in call or "/preupload/" in call]


def test_only_changed_shards_travel(hub, out, tmp_path, tiny_models):
    publish(out)
    hub.sent.clear()
    old = hub.repos[KEY].files
    make_dataset(tmp_path / "more", tiny_models, trajectories=12)  # 3 shards of 4: the first two are the same rows
    receipt = publish(tmp_path / "more")
    new = hub.repos[KEY].files
    changed = {path for path in new if old.get(path) != new[path]}
    large = sum(len(new[path]) for path in changed if path.endswith((".parquet", ".png")))
    assert sum(hub.sent.values()) == large
    assert receipt.changed_files == len(changed)
    assert receipt.changed_bytes == sum(len(new[path]) for path in changed)


def test_what_is_gone_is_deleted_and_what_is_not_ours_stays(hub, out, tmp_path, tiny_models):
    publish(out)
    repo = hub.repos[KEY]
    repo.commit(repo.files | {"LICENSE": b"text", "notes/plan.md": b"mine", "arms/extra.parquet": b"mine"})
    make_dataset(tmp_path / "less", tiny_models, trajectories=8, arm="shaped")
    receipt = publish(tmp_path / "less")
    assert sorted(repo.files) == [".gitattributes", "LICENSE", "README.md", "arms/extra.parquet", "data/train-00000-of-00002.parquet",
                                  "data/train-00001-of-00002.parquet", "energies.png", "manifest.json", "notes/plan.md", "tokenizer.json"]
    assert receipt.deleted_files == 9
    head = read_front_matter(repo.files["README.md"].decode())
    assert head["configs"][1] == {"config_name": "arms", "data_files": [{"split": "shaped", "path": "data/train-*.parquet"}]}
    assert verify(open_store(receipt.uri), lambda *_: None)[1] == []


def test_without_arm_splits_there_are_no_copies(hub, out):
    publish(out, arm_splits=False)
    files = hub.repos[KEY].files
    assert not [path for path in files if path.startswith("arms/")]
    assert [each["config_name"] for each in read_front_matter(files["README.md"].decode())["configs"]] == ["default"]
    publish(out)
    assert len([path for path in hub.repos[KEY].files if path.startswith("arms/")]) == 6


def killed_and_finished(hub, out, points):
    """Publish under a new name for every point: cut after so many bytes, then finished. What arrived must not travel twice."""
    reference = None
    for number, point in enumerate(points):
        name, repo = f"team/cut{number}", ("dataset", f"team/cut{number}")
        hub.objects.clear()
        hub.sent.clear()
        hub.cut_after = point
        line = refused(partial(publish, out, repo=name), WorkError)
        assert "the Hub can't be reached" in line
        assert line.endswith("the same command goes on")
        assert "manifest.json" not in hub.repos[repo].files
        arrived = dict(hub.sent)
        assert sum(arrived.values()) <= point
        hub.cut_after = None
        publish(out, repo=name)
        files = {path: data for path, data in hub.repos[repo].files.items() if path != "README.md"}  # it names the repository
        reference = reference or files
        assert files == reference
        large = {path: data for path, data in files.items() if path.endswith((".parquet", ".png"))}
        assert sum(hub.sent.values()) == sum(len(data) for data in set(large.values()))  # each once, over both runs
        assert verify(open_store(f"hf://datasets/{name}"), lambda *_: None)[1] == []


def large_bytes(out, hub):
    publish(out, repo="team/whole")
    return sum(len(data) for path, data in hub.repos["dataset", "team/whole"].files.items() if path.endswith((".parquet", ".png")))


def test_a_cut_upload_is_finished_by_a_rerun(hub, out):
    total = large_bytes(out, hub)
    killed_and_finished(hub, out, [0, total // 3, total, total + 1000])  # the last ones within the commit


@pytest.mark.slow
def test_twenty_cuts_at_random_points(hub, out, monkeypatch):
    total = large_bytes(out, hub)
    monkeypatch.setattr(hub_upload, "GROUP_FILES", 3)
    killed_and_finished(hub, out, [random.Random(number).randrange(total) for number in range(20)])


def test_many_files_take_several_commits_and_the_manifest_comes_last(hub, out, monkeypatch):
    monkeypatch.setattr(hub_upload, "GROUP_FILES", 2)
    monkeypatch.setattr(hub_upload, "FILES_A_COMMIT", 4)
    hub.page = 3
    publish(out)
    states = list(hub.repos[KEY].commits.values())
    assert len(states) == 5
    assert ["manifest.json" in files for files in states] == [False, False, False, False, True]
    hub.calls.clear()
    assert not publish(out).sent_anything  # a listing of several pages
    assert len([call for call in hub.calls if "/tree/" in call]) > 1


def test_a_killed_publication_of_several_commits_goes_on_where_it_was(hub, out, monkeypatch):
    monkeypatch.setattr(hub_upload, "GROUP_FILES", 2)
    monkeypatch.setattr(hub_upload, "FILES_A_COMMIT", 4)

    def stop(stage, done, total):
        if stage == "uploading" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publish(out, stop)
    assert "manifest.json" not in hub.repos[KEY].files
    committed = {path for path in hub.repos[KEY].files if path.endswith(".parquet")}
    assert committed
    hub.sent.clear()
    publish(out)
    sent = set(hub.repos[KEY].files.values()) & {hub.objects[oid] for oid in hub.sent}
    assert not sent & {hub.repos[KEY].files[path] for path in committed}
    assert verify(open_store("hf://datasets/team/runs"), lambda *_: None)[1] == []


def test_uploads_in_parts(hub, out):
    hub.part = 1000
    publish(out)
    assert verify(open_store("hf://datasets/team/runs"), lambda *_: None)[1] == []


def test_a_passing_fault_is_healed_by_the_client(hub, out):
    hub.fail("PUT /lfs/", 500, times=3)
    hub.fail("POST .*/objects/batch", 503, times=2)
    publish(out)
    assert "manifest.json" in hub.repos[KEY].files


def test_a_commit_whose_answer_was_lost_is_found_by_a_rerun(hub, out):
    hub.lose_commits = True
    refused(lambda: publish(out), WorkError)
    hub.lose_commits = False
    hub.calls.clear()
    receipt = publish(out)
    assert receipt.revision == hub.repos[KEY].head
    assert not [call for call in hub.calls if "/commit/" in call]


def test_two_publishers_do_not_mix(hub, out):
    def meddle(stage, done, total):
        if stage == "uploading" and done == total:
            repo = hub.repos[KEY]
            repo.commit(repo.files | {"manifest.json": b"another's"})

    line = refused(lambda: publish(out, meddle), WorkError)
    assert "somebody else changed the repository meanwhile" in line
    assert hub.repos[KEY].files["manifest.json"] == b"another's"


@pytest.mark.parametrize(("pattern", "status", "message", "kind", "words"), [
    ("POST .*/objects/batch", 403, "Private repository storage limit reached", WorkError, "quota is used up"),
    ("POST .*/commit/", 413, "", WorkError, "quota is used up"),
    ("POST .*/commit/", 500, "", WorkError, "answered HTTP 500"),
    ("POST .*/preupload/", 503, "", WorkError, "answered HTTP 503"),
    ("PUT /lfs/", 500, "", WorkError, "answered HTTP 500"),
    ("POST .*/commit/", 429, "", WorkError, "answered HTTP 429"),
    ("POST .*/repos/create", 403, "no rights", InputError, "may not do that (HTTP 403)"),
    ("GET .*/whoami-v2", 401, "Invalid credentials in Authorization header", InputError, "the token is wrong or has expired"),
    ("POST .*/commit/", 401, "Invalid credentials in Authorization header", InputError, "the token is wrong or has expired"),
])
def test_refusals_are_one_line_and_a_rerun_completes(hub, out, pattern, status, message, kind, words):  # noqa: PLR0913
    hub.fail(pattern, status, times=99, message=message)
    assert words in refused(lambda: publish(out), kind)
    assert not (out / RECEIPT_FILE).exists()
    hub._faults.clear()
    publish(out)
    assert verify(open_store("hf://datasets/team/runs"), lambda *_: None)[1] == []


def test_the_quota_of_the_hub(hub, out):
    hub.quota = 20_000
    line = refused(lambda: publish(out), WorkError)
    assert line == "team/runs: the Hub's storage quota is used up; free some space or raise it; what arrived is kept; the same command goes on"


def test_no_login_and_an_expired_one(hub, out, monkeypatch):
    hub.expired.add(TOKEN)
    assert "'hf auth login'" in refused(lambda: publish(out))
    monkeypatch.delenv("HF_TOKEN")
    assert "not logged in to the Hub" in refused(lambda: publish(out))
    assert not hub.repos


def test_a_namespace_of_somebody_else(hub, out):
    assert "may not do that" in refused(lambda: publish(out, repo="others/runs"))


def test_a_faulty_dataset_is_refused_and_nothing_is_sent(hub, out):
    shard = out / "data" / "train-00001-of-00003.parquet"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    line = refused(lambda: publish(out))
    assert "train-00001-of-00003.parquet" in line
    assert line.endswith("nothing was published")
    assert not hub.repos


def test_a_private_repository(hub, out):
    publish(out, private=True)
    assert hub.repos[KEY].private
    publish(out)  # stays so
    assert hub.repos[KEY].private


def test_private_is_not_promised_of_a_public_repository(hub, out):
    publish(out)
    assert "exists and is public" in refused(lambda: publish(out, private=True))


def test_a_repository_of_something_else_is_left_alone(hub, out):
    repo = hub.add("dataset", "team/runs")
    repo.commit({"data/train-00000-of-00001.parquet": b"mine", "train.csv": b"1,2"})
    assert "holds other files than this dataset (data/train-00000-of-00001.parquet, train.csv)" in refused(lambda: publish(out))
    repo.commit({"data/train-00000-of-00003.parquet": b"mine", "README.md": b"mine, too"})
    assert "holds other files than this dataset (data/train-00000-of-00003.parquet)" in refused(lambda: publish(out))
    repo.commit({"manifest.json": b'{"files": ["a"]}', "data/extra.parquet": b"mine", "arms/b.parquet": b"mine"})
    assert "holds other files than this dataset (arms/b.parquet, data/extra.parquet, manifest.json)" in refused(lambda: publish(out))
    repo.commit({"manifest.json": b"{}"})
    assert "holds other files than this dataset (manifest.json)" in refused(lambda: publish(out))
    assert len(repo.commits) == 5
    assert not hub.sent
    hub.add("dataset", "team/other").commit({"README.md": b"hello"})
    publish(out, repo="team/other")


def test_a_receipt_that_is_none_is_told_before_anything_is_read(hub, out):
    (out / RECEIPT_FILE).write_text("{")
    (out / "data" / "train-00000-of-00003.parquet").write_bytes(b"faulty")
    assert "published.json: is not the receipt of a publication" in refused(lambda: publish(out))
    assert not hub.calls


def test_a_licence_that_the_hub_does_not_know(hub, out):
    assert 'refuses the card ("license" must be one of a list)' in refused(lambda: publish(out, license="nonsense"))


def test_a_dataset_without_a_compass_has_no_plot(hub, tmp_path, tiny_models):
    make_dataset(tmp_path / "plain", tiny_models, compass="none", arm="blind", shaping={"candidates": 1})
    publish(tmp_path / "plain")
    assert "energies.png" not in hub.repos[KEY].files
    assert "energies.png" not in hub.repos[KEY].files["README.md"].decode()


def test_no_token_anywhere(hub, out, tmp_path, caplog, capfd):
    import logging

    caplog.set_level(logging.DEBUG)
    for name in ("huggingface_hub", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    hub.fail("POST .*/commit/", 500, times=1)
    refused(lambda: publish(out), WorkError)
    publish(out)
    secret = TOKEN.encode()
    written = [*folder_files(tmp_path).values(), *hub.objects.values(), *(d for files in hub.repos[KEY].commits.values() for d in files.values())]
    assert len(written) > 20
    assert not [data for data in written if secret in data]
    said = capfd.readouterr()
    assert TOKEN not in caplog.text + said.out + said.err


@pytest.mark.parametrize("data", [b"", b"text\n", bytes(range(256)) * 40])
def test_blob_ids_are_those_of_git(data, tmp_path):
    (tmp_path / "file").write_bytes(data)
    found = subprocess.run(["git", "hash-object", "--no-filters", str(tmp_path / "file")], capture_output=True, text=True, check=True)
    assert hub_upload.git_blob_id(data) == found.stdout.strip()


def test_a_dataset_on_an_object_store(hub, out):
    store = open_store("memory://published/out")
    for path, data in folder_files(out).items():
        store.write(path, data)
    receipt = publish_dataset(store, PublishConfig(out=store.uri, repo="team/runs"), lambda *_: None)
    assert Receipt.model_validate_json(present(store.read(RECEIPT_FILE))) == receipt
    assert verify(open_store(receipt.uri), lambda *_: None)[1] == []
