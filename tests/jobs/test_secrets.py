"""What opens a store is told nowhere: not in a record, a card, a manifest or a message, whatever the command and however it ends."""

import json
from pathlib import Path

import pytest

from tests.support import make_dataset
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.training.distill import distill
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.paths import redacted

SECRETS = ("AKIAKEY", "s3cr3t", "t0ken")
DATA = "memory://AKIAKEY:s3cr3t@bucket/{}?token=t0ken"


@pytest.mark.parametrize(("text", "told"), [
    ("s3://KEY:SECRET@bucket/ds", "s3://bucket/ds"), ("s3://KEY:SE/CR+ET@bucket/ds", "s3://bucket/ds"),
    ("s3://bucket/ds?secret_key=a&region=b", "s3://bucket/ds"), ("no (s3://K:S@b/d?x=1); then", "no (s3://b/d); then"),
    ("a s3://K:S@b/d, gs://T@c/e: two", "a s3://b/d, gs://c/e: two"), ("simplecache::s3://K:S@b/d", "simplecache::s3://b/d"),
    ('{"out": "s3://K:S@b/d?x=1"}', '{"out": "s3://b/d"}'), ("hf://datasets/U/N@abc", "hf://datasets/U/N@abc"),
    ("abfs://container@account/ds", "abfs://container@account/ds"), ("http://127.0.0.1:80/a@b", "http://127.0.0.1:80/a@b"),
    ("/plain/path@x?y", "/plain/path@x?y")])
def test_user_information_and_queries_are_left_out(text, told):
    assert redacted(text) == told


def clean(said: str) -> bool:
    return not any(secret in said for secret in SECRETS)


def test_no_command_tells_them(cli, tmp_path, tiny_models, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = DATA.format("ds")
    make_dataset(there, tiny_models)
    store = open_store(there)
    assert clean(store.uri)
    for path in (*store.names(), *(f"data/{name}" for name in store.names("data"))):
        held = store.read(path)
        assert held is None or clean(held.decode(errors="replace"))
    for arguments in (["verify", there], ["verify", there, "--json"], ["inspect", there, "--json"], ["inspect", there, "--trajectory", 999],
                      ["verify", DATA.format("none")], ["inspect", DATA.format("none")], ["publish", DATA.format("none"), "--repo", "a/b"],
                      ["distill", "--data", DATA.format("none"), "--out", tmp_path / "x"],
                      ["generate", "--out", f"unknown{there}", "--trajectories", 1], ["inspect", f"s3{there[6:]}&no=1"]):
        outcome = cli(*arguments)
        assert clean(outcome.stdout), arguments
        assert clean(outcome.stderr), arguments


def test_a_text_is_told_as_it_is_written(cli, tiny_models):
    """An address in a text is no secret of the machine's: it was cut in `--json`, and so was not what the model had been given."""
    prompt = "a s3://k@b/?q"
    outcome = cli("sample", "--model", tiny_models.uniform, "--steps", 1, "-n", 1, "--length", 16, "--prompt", prompt, "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["prompted"][0]["prompt"] == prompt
    assert report["texts"][0].startswith(prompt)


def test_a_student_and_its_card_do_not_tell_them(tmp_path, tiny_models):
    there = DATA.format("trained")
    make_dataset(there, tiny_models)
    config = DistillConfig.model_validate({"data": {"paths": [there]}, "budgets": {8: 1}, "optim": {"steps": 2, "batch_size": 4},
                                           "init": str(tiny_models.mask)})
    assert distill(config, tmp_path / "student") is not None
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert any(path.name == "training.json" for path in files)
    for path in files:
        assert clean(path.read_bytes().decode(errors="replace")), path
    assert "memory://bucket/trained" in (tmp_path / "student" / "training.json").read_text()
