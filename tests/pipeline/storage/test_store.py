"""Stores: a file is whole or absent, one run owns a dataset, and a URI serves like a folder."""

import errno
import os
import subprocess
import sys

import pytest

from tests.support import make_dataset
from tsdfm.pipeline.dataset.verify import verify
from tsdfm.pipeline.storage.locks import LOCK_FILE
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.schemas.base import InputError, WorkError


@pytest.fixture(params=["local", "file", "memory"])
def store(request, tmp_path):
    uris = {"local": str(tmp_path / "out"), "file": f"file://{tmp_path / 'out'}", "memory": f"memory://{tmp_path.name}/out"}
    return open_store(uris[request.param])


@pytest.mark.parametrize("name", ["file://{}", "file:{}", "file://localhost{}"])
def test_every_form_of_a_file_uri_is_the_folder(name, tmp_path):
    store = open_store(name.format(tmp_path))
    assert store.local == open_store(store.address).local == tmp_path


@pytest.mark.parametrize("name", ["file://host/tmp", "file://", "file://.", "file://localhost"])
def test_a_file_uri_of_no_folder_here_is_refused(name):
    with pytest.raises(InputError, match=f"^{name}: names no folder of this machine; write file:///path"):
        open_store(name)


def test_a_file_is_read_back_listed_and_removed(store):
    assert store.read("data/a") is None
    assert store.names("data") == []
    store.write("data/a", b"one")
    store.write("data/a", b"two")
    store.write("b", b"")
    assert store.read("data/a") == b"two"
    assert store.read("b") == b""
    assert store.names("data") == ["a"]
    assert store.names() == ["b", "data"]
    store.remove("data/a")
    store.remove("data/a")
    assert store.read("data/a") is None


def test_one_owner_at_a_time_and_a_new_one_afterwards(store):
    with store.owned(), pytest.raises(InputError, match=f"process {os.getpid()} on .*another --out"), open_store(store.uri).owned():
        pass
    with open_store(store.uri).owned():
        pass
    assert not [name for name in store.names() if name.startswith(LOCK_FILE)]


def test_a_killed_owner_leaves_the_folder_free(tmp_path):
    code = ("import os, signal, sys; from tsdfm.pipeline.storage.open_store import open_store\n"
            "with open_store(sys.argv[1]).owned(): os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, tmp_path / "out"], check=False).returncode == -9
    assert (tmp_path / "out" / LOCK_FILE).exists()
    with open_store(str(tmp_path / "out")).owned():
        pass


def test_a_lock_file_unlinked_in_between_does_not_count(tmp_path):
    """The owner unlinks its lock as it leaves: whoever locked that very file must try again on the new one."""
    out = open_store(str(tmp_path))
    with out.owned():
        (tmp_path / LOCK_FILE).unlink()
        with open_store(str(tmp_path)).owned(), pytest.raises(InputError), open_store(str(tmp_path)).owned():
            pass


@pytest.mark.parametrize(("number", "kind", "words"), [
    (errno.ENOSPC, WorkError, "disk is full"), (errno.EROFS, InputError, "folder you can write to"), (errno.EIO, WorkError, "cannot write")])
def test_failed_writes_leave_nothing_behind(number, kind, words, tmp_path, monkeypatch):
    store = open_store(str(tmp_path))
    store.write("data/kept", b"old")

    def fails(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(kind, match=words):
        store.write("data/kept", b"new")
    with pytest.raises(kind):
        store.write("data/other", b"new")
    assert store.read("data/kept") == b"old"
    assert store.names("data") == ["kept"]


def test_temporary_files_of_a_killed_run_are_swept(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".train-0.parquet.abc.tmp").write_bytes(b"half")
    (tmp_path / ".manifest.json.abc.tmp").write_bytes(b"half")
    with open_store(str(tmp_path)).owned():
        assert list(tmp_path.rglob("*.tmp")) == []


def test_a_dataset_on_an_object_store_equals_the_local_one(tmp_path, tiny_models):
    local = make_dataset(tmp_path / "out", tiny_models)
    assert make_dataset("memory://equal/out", tiny_models) == local
    assert verify(open_store("memory://equal/out"))[1] == []
