"""Hub datasets through the real client, against a small server on loopback: pins, reads, and each failure in one line."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest
import torch

from tests.support import make_dataset
from tsdfm.pipeline.dataset import read_manifest
from tsdfm.pipeline.hub import HubStore, open_dataset
from tsdfm.pipeline.reader import Reader
from tsdfm.pipeline.storage import Store
from tsdfm.pipeline.verify import verify
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig

FIRST, SECOND = "1" * 40, "2" * 40
TOKEN = "hf_aSecretThatMustNotBeShown"


class Hub:
    """The routes of the Hub that the client uses for datasets. `files`: commit -> folder; `refs`: name -> commit."""

    def __init__(self):
        self.files, self.refs, self.calls = {}, {}, []
        self.login = None  # a token that must be sent; None: open to all
        self.gated = False
        self.broken = None  # a status to answer everything with
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, headers, body = hub.answer(unquote(self.path), self.headers.get("authorization"))
                hub.calls.append((self.command, unquote(self.path)))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path, authorization):
        if self.broken:
            return self.broken, {}, b""
        if self.login and authorization != f"Bearer {self.login}":
            if authorization:
                return 401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b""
            return 401, {"X-Error-Code": "RepoNotFound"}, b""
        if path.startswith("/api/datasets/team/runs/tree/"):
            commit, _, name = path.removeprefix("/api/datasets/team/runs/tree/").partition("?")[0].partition("/")
            if not (self.files[commit] / name).is_dir():
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
            entries = [{"type": "directory" if file.is_dir() else "file", "oid": "0" * 40, "size": file.stat().st_size,
                        "path": file.relative_to(self.files[commit]).as_posix()} for file in (self.files[commit] / name).iterdir()]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if path.startswith("/api/datasets/team/runs"):
            rest = path.removeprefix("/api/datasets/team/runs")
            commit = self.commit_of(rest.removeprefix("/revision/") if rest else "main")
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            return 200, {"Content-Type": "application/json"}, json.dumps({"id": "team/runs", "sha": commit}).encode()
        if path.startswith("/datasets/team/runs/resolve/"):
            revision, _, name = path.removeprefix("/datasets/team/runs/resolve/").partition("/")
            commit = self.commit_of(revision)
            if commit is None:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            if self.gated:
                return 403, {"X-Error-Code": "GatedRepo", "X-Repo-Commit": commit}, b""
            file = self.files[commit] / name
            if not file.is_file():
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{commit[0]}-{name.replace("/", "-")}"'}, file.read_bytes()
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def commit_of(self, revision):
        return self.refs.get(revision, revision if revision in self.files else None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_models):
    """Two versions of a dataset."""
    root = tmp_path_factory.mktemp("hub")
    make_dataset(root / "first", tiny_models)
    make_dataset(root / "second", tiny_models, rollout={"steps": 8, "batch_size": 4, "seed": 1})
    return root / "first", root / "second"


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    made = Hub()
    made.files = {FIRST: folders[0], SECOND: folders[1]}
    made.refs = {"main": SECOND, "v1": FIRST, "refs/pr/1": FIRST}
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))  # read from HF_HOME at import
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    yield made
    made.server.shutdown()
    made.server.server_close()


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
    store = open_dataset(f"hf://datasets/team/runs{suffix}")
    assert store.uri == f"hf://datasets/team/runs@{commit}"
    assert store.read("manifest.json") == (hub.files[commit] / "manifest.json").read_bytes()
    hub.refs["main"] = hub.refs["v1"] = "3" * 40  # the branch moves on: an open store doesn't
    assert read_manifest(store) == read_manifest(Store(str(hub.files[commit])))
    assert store.read("data/nothing.parquet") is None
    assert open_dataset(store.uri).uri == store.uri


def test_a_hub_dataset_reads_like_the_folder(hub, folders):
    def batches(path):
        reader = Reader.open(DataConfig(paths=[path]), objective="candidates", beta=1.0, budgets={1: 1.0, 4: 1.0}, batch_size=4,
                             seed=0)
        return reader, list(reader.batches(0, 6))

    reader, ours = batches("hf://datasets/team/runs@v1")
    _, local = batches(str(folders[0]))
    for one, other in zip(ours, local, strict=True):
        assert torch.equal(one.x_t, other.x_t)
        assert torch.equal(one.weights, other.weights)
    assert reader.facts()["datasets"][0]["uri"] == f"hf://datasets/team/runs@{FIRST}"
    assert reader.facts()["datasets"][0]["path"] == "hf://datasets/team/runs@v1"
    assert reader.vocabulary.fingerprint == reader.manifests[0].identity.tokenizer
    assert verify(open_dataset("hf://datasets/team/runs"), lambda *_: None)[1] == []
    downloads = [path for command, path in hub.calls if command == "GET" and f"resolve/{FIRST}" in path]
    assert len(downloads) == len(set(downloads))  # each file once, then from the client's cache


def test_files_are_listed_as_in_a_folder(hub, folders):
    store, local = open_dataset("hf://datasets/team/runs@v1"), Store(str(folders[0]))
    assert store.names() == local.names()
    assert store.names("data") == local.names("data")
    assert store.names("nothing") == []
    hub.broken = 500
    assert "HTTP 500" in refused(store.names, WorkError)


def test_a_pinned_and_cached_dataset_opens_without_the_hub(hub):
    uri = f"hf://datasets/team/runs@{FIRST}"
    expected = open_dataset(uri).read("manifest.json")
    hub.server.shutdown()
    hub.server.server_close()
    assert open_dataset(uri).read("manifest.json") == expected


def test_a_process_of_its_own_reads_the_environment(hub, folders, tmp_path):
    code = "import sys; from tsdfm.pipeline.hub import open_dataset; s = open_dataset(sys.argv[1]); print(s.uri, len(s.read('manifest.json')))"
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code, "hf://datasets/team/runs"], env=environment, capture_output=True, text=True,
                          check=True)
    assert done.stdout.split() == [f"hf://datasets/team/runs@{SECOND}", str((folders[1] / "manifest.json").stat().st_size)]
    assert done.stderr == ""  # no progress bars of the client's


def test_no_such_repository_or_revision(hub):
    assert refused(lambda: open_dataset("hf://datasets/team/other")) == (
        "hf://datasets/team/other: no such dataset, or it is private; check the name, and run 'hf auth login' if it is yours")
    line = refused(lambda: open_dataset("hf://datasets/team/runs@v9"))
    assert line.startswith("hf://datasets/team/runs@v9: no such revision; ")
    unknown = "9" * 40  # a commit is not asked for until it is read
    assert "no such revision" in refused(lambda: read_manifest(open_dataset(f"hf://datasets/team/runs@{unknown}")))
    assert "no such dataset" in refused(lambda: read_manifest(open_dataset(f"hf://datasets/team/other@{unknown}")))


def test_a_private_repository_needs_the_right_login(hub, monkeypatch):
    hub.login = TOKEN
    assert "'hf auth login'" in refused(lambda: open_dataset("hf://datasets/team/runs"))
    assert "'hf auth login'" in refused(lambda: open_dataset(f"hf://datasets/team/runs@{FIRST}").read("manifest.json"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert open_dataset("hf://datasets/team/runs").read("manifest.json")
    hub.login = "hf_another"
    assert "refused the login (HTTP 401)" in refused(lambda: open_dataset("hf://datasets/team/runs"))
    assert "refused the login (HTTP 401)" in refused(lambda: open_dataset(f"hf://datasets/team/runs@{FIRST}").read("README.md"))


def test_a_gated_repository(hub):
    hub.gated = True
    assert "access is gated; ask for it" in refused(lambda: read_manifest(open_dataset("hf://datasets/team/runs")))


def test_a_hub_in_trouble_is_not_the_users_fault(hub, monkeypatch):
    hub.broken = 500
    assert "answered HTTP 500; try again later" in refused(lambda: open_dataset("hf://datasets/team/runs"), WorkError)


def test_no_network(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    line = refused(lambda: open_dataset("hf://datasets/team/runs"))
    assert line.startswith(f"hf://datasets/team/runs: {url} can't be reached (ConnectError); check the network")


def test_no_network_at_a_read(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between the client's own tries
    store = open_dataset("hf://datasets/team/runs")
    hub.server.shutdown()
    hub.server.server_close()
    assert "can't be reached" in refused(lambda: store.read("manifest.json"))


@pytest.mark.parametrize("uri", ["hf://team/runs", "hf://datasets/runs", "hf://datasets/team/runs/data/x.parquet", "hf://datasets/a/b@",
                                 "hf://models/team/runs"])
def test_what_is_no_dataset_uri(uri):
    assert refused(lambda: open_dataset(uri)).startswith(f"{uri}: not a Hub dataset; write hf://datasets/USER/NAME")


def test_what_is_no_repository_name():
    assert "can't be a repository's name" in refused(lambda: open_dataset("hf://datasets/team/--runs!"))


def test_a_hub_dataset_is_read_only(hub):
    store = open_dataset("hf://datasets/team/runs")
    for action in (lambda: store.write("a", b""), lambda: store.remove("a"), lambda: store.owned().__enter__()):
        assert "can only be read here" in refused(action)


def test_paths_and_other_uris_are_plain_stores(tmp_path):
    for path in (str(tmp_path), f"file://{tmp_path}", "memory://x/y"):
        assert type(open_dataset(path)) is Store
    assert issubclass(HubStore, Store)
