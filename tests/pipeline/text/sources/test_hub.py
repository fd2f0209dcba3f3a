"""Datasets of the Hub: their names, their configs, the commit that is read, and what is said where something is not there."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsdfm.pipeline.text.documents import Reading, read_documents
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.corpus import CorpusConfig

SEVERAL = "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: small/train.jsonl\n  - split: test\n    path: small/test.jsonl\n" \
          "- config_name: large\n  data_files:\n  - split: train\n    path: large/*.jsonl\n---\n"


def lines(*texts, field="text"):
    return "".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)).encode()


def parquet(*texts):
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file)
    return file.getvalue()


@pytest.fixture
def datasets_at(hub, monkeypatch, tmp_path):
    """The hub, with the datasets client pointed at it, and a cache of its own."""
    for name, value in {"datasets.config.HF_ENDPOINT": hub.url, "datasets.config.HF_DATASETS_CACHE": tmp_path / "datasets",
                        "datasets.config.HF_MODULES_CACHE": str(tmp_path / "modules"), "huggingface_hub.constants.ENDPOINT": hub.url,
                        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}"}.items():
        monkeypatch.setattr(name, value)
    from huggingface_hub import HfFileSystem

    HfFileSystem.clear_instance_cache()
    yield hub
    HfFileSystem.clear_instance_cache()


def read(path, **more):
    reading = Reading()
    return list(read_documents(CorpusConfig(path=path, **more), reading)), reading


def refused(path, **more):
    with pytest.raises(InputError) as caught:
        read(path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_split_train_of_a_dataset_and_its_commit(datasets_at):
    repo = datasets_at.add("dataset", "team/plain")
    commit = repo.commit({"train.jsonl": lines("one", None, "two"), "test.jsonl": lines("three"), "README.md": b"# A card"})
    found, reading = read("hub:team/plain")
    assert (found, reading.commit) == (["one", "two"], commit)
    assert reading.left_out["null texts"] == 1
    assert read("hub:team/plain:test")[0] == ["three"]
    assert "train" in refused("hub:team/plain:nowhere")
    message = refused("hub:team/plain", text_field="body")
    assert all(word in message for word in ("'body'", "id, text", "--text-field"))


def test_a_revision_is_pinned(datasets_at):
    repo = datasets_at.add("dataset", "team/plain")
    first = repo.commit({"train.parquet": parquet("old")})
    second = repo.commit({"train.parquet": parquet("new")})
    repo.refs["v1"] = first
    for revision in (first, "v1"):
        found, reading = read(f"hub:team/plain@{revision}")
        assert (found, reading.commit) == (["old"], first)
    assert read("hub:team/plain")[1].commit == second
    assert read("hub:team/plain@v1:train")[0] == ["old"]
    assert "no such revision" in refused("hub:team/plain@v9")


def test_a_config_is_named_and_its_names_are_told(datasets_at):
    datasets_at.add("dataset", "team/several").commit({
        "small/train.jsonl": lines("small"), "small/test.jsonl": lines("held"), "large/a.jsonl": lines("large"), "README.md": SEVERAL.encode()})
    assert "small, large" in refused("hub:team/several")
    assert "small, large" in refused("hub:team/several:medium")
    assert "small, large" in refused("hub:team/several:medium:train")
    assert "train, test" in refused("hub:team/several:small:nowhere")
    assert read("hub:team/several:large")[0] == ["large"]
    assert read("hub:team/several:small:test")[0] == ["held"]
    assert read("hub:team/several@main:small:train")[0] == ["small"]


@pytest.mark.parametrize("path", ["hub:", "hub:team/plain:a:b:c", "hub:@main"])
def test_a_name_that_is_none_is_refused(path):
    assert "hub:NAME[@REVISION][:CONFIG][:SPLIT]" in refused(path)


def test_what_is_not_there_or_out_of_reach_is_one_line(datasets_at):
    assert "no such repository" in refused("hub:team/nowhere")
    datasets_at.add("dataset", "team/empty")
    assert "hub:team/empty" in refused("hub:team/empty")
    datasets_at.broken = 503
    with pytest.raises(WorkError, match="503"):
        read("hub:team/plain")
