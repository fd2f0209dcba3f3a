"""Hub datasets through the real client, against a small server on loopback: pins, reads, and each failure in one line."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from tests.loopback_hub import TOKEN, LoopbackHub, Repo, folder_files, use
from tests.support import copy_dataset, make_dataset
from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import LocalStore, UriStore
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig

FIRST, SECOND = "1" * 40, "2" * 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_models):
    """Two versions of a dataset."""
    root = tmp_path_factory.mktemp("hub")
    copy_dataset(root / "first", tiny_models)
    make_dataset(root / "second", tiny_models, rollout={"steps": 8, "batch_size": 4, "seed": 1})
    return root / "first", root / "second"


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    with LoopbackHub() as made:
        made.runs = made.repos["dataset", "team/runs"] = Repo()
        made.runs.commits = {FIRST: folder_files(folders[0]), SECOND: folder_files(folders[1])}
        made.runs.refs = {"main": SECOND, "v1": FIRST, "refs/pr/1": FIRST}
        use(made, tmp_path, monkeypatch)
        monkeypatch.delenv("HF_TOKEN")
        yield made


def refused(action, kind=InputError):
    with pytest.raises(kind) as caught:
        action()
    line = str(caught.value)
    assert "\n" not in line
    assert TOKEN not in line
    return line


@pytest.mark.parametrize(("suffix", "commit"), [
    ("", SECOND), ("@main", SECOND), ("@v1", FIRST), ("@refs/pr/1", FIRST), (f"@{FIRST}", FIRST)])
def test_a_revision_is_pinned_to_its_commit(hub, folders, suffix, commit):
    store = open_store(f"hf://datasets/team/runs{suffix}")
    assert store.uri == f"hf://datasets/team/runs@{commit}"
    assert store.read("manifest.json") == hub.runs.commits[commit]["manifest.json"]
    hub.runs.refs["main"] = hub.runs.refs["v1"] = "3" * 40  # the branch moves on: an open store doesn't
    assert read_manifest(store) == read_manifest(open_store(str(folders[commit == SECOND])))
    assert store.read("data/nothing.parquet") is None
    assert open_store(store.uri).uri == store.uri


def test_a_hub_dataset_reads_like_the_folder(hub, folders):
    def batches(path):
        reader = Reader.open(DataConfig(paths=[path]), ReaderSettings(objective="candidates", beta=1.0, budgets={1: 1.0, 4: 1.0}, batch_size=4,
                             seed=0))
        return reader, list(reader.batches(0, 6))

    reader, ours = batches("hf://datasets/team/runs@v1")
    _, local = batches(str(folders[0]))
    for one, other in zip(ours, local, strict=True):
        assert torch.equal(one.x_t, other.x_t)
        assert torch.equal(one.weights, other.weights)
    assert reader.facts().datasets[0].uri == f"hf://datasets/team/runs@{FIRST}"
    assert reader.facts().datasets[0].path == "hf://datasets/team/runs@v1"
    assert reader.vocabulary.fingerprint == reader.manifests[0].identity.tokenizer
    assert verify(open_store("hf://datasets/team/runs"), lambda *_: None)[1] == []
    downloads = [call for call in hub.calls if call.startswith("GET ") and f"resolve/{FIRST}" in call]
    assert len(downloads) == len(set(downloads))  # each file once, then from the client's cache


def test_files_are_listed_as_in_a_folder(hub, folders):
    store, local = open_store("hf://datasets/team/runs@v1"), open_store(str(folders[0]))
    assert store.names() == local.names()
    assert store.names("data") == local.names("data")
    assert store.names("nothing") == []
    hub.broken = 500
    assert "HTTP 500" in refused(store.names, WorkError)


def test_a_pinned_and_cached_dataset_opens_without_the_hub(hub):
    uri = f"hf://datasets/team/runs@{FIRST}"
    expected = open_store(uri).read("manifest.json")
    hub.stop()
    assert open_store(uri).read("manifest.json") == expected


def test_a_process_of_its_own_reads_the_environment(hub, folders, tmp_path):
    code = "import sys; from tsdfm.pipeline.storage.open_store import open_store; s = open_store(sys.argv[1]); print(s.uri, len(s.read('manifest.json')))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code, "hf://datasets/team/runs"], env=environment, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == [f"hf://datasets/team/runs@{SECOND}", str((folders[1] / "manifest.json").stat().st_size)]
    assert done.stderr == ""  # no progress bars of the client's


def test_no_such_repository_or_revision(hub):
    assert refused(lambda: open_store("hf://datasets/team/other")) == (
        "hf://datasets/team/other: no such repository, or it is private; check the name, and run 'hf auth login', or set HF_TOKEN, if it is yours")
    line = refused(lambda: open_store("hf://datasets/team/runs@v9"))
    assert line.startswith("hf://datasets/team/runs@v9: no such revision; ")
    unknown = "9" * 40  # a commit is not asked for until it is read
    assert "no such revision" in refused(lambda: read_manifest(open_store(f"hf://datasets/team/runs@{unknown}")))
    assert "no such repository" in refused(lambda: read_manifest(open_store(f"hf://datasets/team/other@{unknown}")))


def test_a_private_repository_needs_the_right_login(hub, monkeypatch):
    hub.tokens, hub.runs.private = {TOKEN: "team"}, True
    assert "'hf auth login'" in refused(lambda: open_store("hf://datasets/team/runs"))
    assert "'hf auth login'" in refused(lambda: open_store(f"hf://datasets/team/runs@{FIRST}").read("manifest.json"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_store("hf://datasets/team/runs").read("manifest.json")
    hub.expired.add(TOKEN)
    assert "refused the login (HTTP 401)" in refused(lambda: open_store("hf://datasets/team/runs"))
    assert "refused the login (HTTP 401)" in refused(lambda: open_store(f"hf://datasets/team/runs@{FIRST}").read("README.md"))


def test_a_gated_repository(hub):
    hub.runs.gated = True
    assert "access is gated; ask for it" in refused(lambda: read_manifest(open_store("hf://datasets/team/runs")))


def test_a_hub_in_trouble_is_not_the_users_fault(hub):
    hub.broken = 500
    assert "answered HTTP 500; try again later" in refused(lambda: open_store("hf://datasets/team/runs"), WorkError)


def test_no_network(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    line = refused(lambda: open_store("hf://datasets/team/runs"), WorkError)
    assert line.startswith("hf://datasets/team/runs: the Hub can't be reached (ConnectError); check the network")


def test_no_network_at_a_read(hub):
    store = open_store("hf://datasets/team/runs")
    hub.stop()
    assert "can't be reached" in refused(lambda: store.read("manifest.json"), WorkError)


@pytest.mark.parametrize("uri", ["hf://team/runs", "hf://datasets/runs", "hf://datasets/team/runs/data/x.parquet", "hf://datasets/a/b@",
                                 "hf://models/team/runs"])
def test_what_is_no_dataset_uri(uri):
    assert refused(lambda: open_store(uri)).startswith(f"{uri}: not a Hub dataset; write hf://datasets/USER/NAME")


def test_what_is_no_repository_name():
    assert "can't be a repository's name" in refused(lambda: open_store("hf://datasets/team/--runs!"))


def test_a_hub_dataset_is_read_only(hub):
    store = open_store("hf://datasets/team/runs")
    for action in (lambda: store.write("a", b""), lambda: store.remove("a"), lambda: store.owned().__enter__()):
        assert "can only be read here" in refused(action)


def test_paths_and_other_uris_have_stores_of_their_own(tmp_path):
    for path, kind in ((str(tmp_path), LocalStore), (f"file://{tmp_path}", LocalStore), ("memory://x/y", UriStore)):
        assert type(open_store(path)) is kind
