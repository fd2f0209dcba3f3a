"""Every command that takes a URI, on S3: what it does there, what it says where the store fails, and that keys are told nowhere."""

import json
import os
import signal
import time

import pytest
import yaml

from tests.commands import running
from tests.loopback_s3 import KEY, SECRET
from tests.support import assert_refused, make_dataset, present, ray_here, tiny_config, tree, write_corpus
from tsdfm.pipeline.storage import object_store
from tsdfm.pipeline.storage.locks import LOCK_FILE
from tsdfm.pipeline.storage.open_store import open_store

OUT = "s3://shelf/out"


def with_keys(s3, name: str = "out") -> str:
    return f"s3://{KEY}:{SECRET}@shelf/{name}?endpoint_override=127.0.0.1:{s3.port}&scheme=http&region=us-east-1"


@pytest.fixture
def data(s3, tmp_path, tiny_models):
    """A dataset in the bucket, and the same in a folder."""
    make_dataset(OUT, tiny_models)
    make_dataset(tmp_path / "local", tiny_models)
    return tmp_path / "local"


def test_verify_inspect_and_publish_do_there_what_they_do_in_a_folder(s3, data, cli, hub, tmp_path):
    s3.faults.every = 30
    told = with_keys(s3)
    checked = cli("verify", told)
    assert checked.code == 0, checked.stderr
    assert "sound" in checked.stdout
    figures = [json.loads(cli("inspect", where, "--json").stdout) for where in (told, data)]
    assert figures[0] | {"out": ""} == figures[1] | {"out": ""}
    assert cli("inspect", told, "--counterfactual").code == 0
    assert cli("inspect", told, "--html", tmp_path / "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    published = cli("publish", told, "--repo", "team/there")
    assert published.code == 0, published.stderr
    assert cli("verify", "hf://datasets/team/there").code == 0
    store = open_store(OUT)
    records = b"".join(present(store.read(name)) for name in store.names() if name.endswith((".json", ".md")))
    for said in (checked.stdout, checked.stderr, page, published.stdout, published.stderr, records.decode()):
        assert SECRET not in said
        assert KEY not in said


def test_a_second_run_is_told_who_writes_there_for_how_long_and_how_to_go_on(s3, data, cli, tiny_models, tmp_path):
    with open_store(OUT).owned():
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(tiny_config(OUT, tiny_models)))
        assert_refused(cli("generate", file), OUT, f"process {os.getpid()} on", "since", "takes over in", f"delete {OUT}/{LOCK_FILE}")


@pytest.mark.parametrize("arguments", [("verify", OUT), ("inspect", OUT), ("distill", "--data", OUT, "--out", "/nowhere/student"), ("publish", OUT, "--repo", "a/b")])
@pytest.mark.parametrize("fault", ["fails", "nobody listens", "no such bucket", "no right"])
@pytest.mark.usefixtures("hub")
def test_a_store_that_fails_is_one_line_from_every_command(arguments, fault, s3, cli, monkeypatch):
    monkeypatch.setattr(object_store, "ATTEMPTS", 1)
    if fault == "nobody listens":
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3.faults.fails, s3.faults.status = {"fails": (10**6, 500), "no right": (10**6, 403)}.get(fault, (0, 0))
    arguments = tuple(each.replace("shelf", "none") for each in arguments) if fault == "no such bucket" else arguments
    outcome = cli(*arguments)
    assert_refused(outcome, "s3://", code=2 if fault == "no such bucket" else 1)
    assert SECRET not in outcome.stderr


def test_an_endpoint_that_never_answers_ends_within_its_time(s3, cli, monkeypatch):
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    monkeypatch.setattr(object_store, "REQUEST_SECONDS", 1.0)
    s3.faults.slow = 30
    began = time.monotonic()
    assert_refused(cli("verify", OUT), "s3://shelf/out", code=1)
    assert time.monotonic() - began < 12


@pytest.mark.slow
def test_a_run_on_ray_that_was_killed_goes_on_there_and_ends_in_the_same_bytes(s3, cli, tmp_path, tiny_models):
    config = tiny_config(with_keys(s3), tiny_models) | {"shard_size": 1, "workers": 1} | {"rollout": {"steps": 256, "batch_size": 4}}
    make_dataset(tmp_path / "local", tiny_models, **{name: config[name] for name in ("shard_size", "rollout")})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    s3.faults.every = 25
    store = open_store(OUT)
    with running("generate", file) as process:
        while len(store.names("data")) < 3 and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert 3 <= len(store.names("data")) < 10
    dead = cli("generate", file)
    assert_refused(dead, "takes over in")
    store.remove(LOCK_FILE)  # as it says
    done = cli("generate", file, "--json")
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["kept"] >= 2  # the third's receipt may not have been written
    for said in (dead.stderr, done.stderr, done.stdout):
        assert SECRET not in said
    local = tree(tmp_path / "local")
    s3.faults.every = 0
    for name in store.names("data"):
        assert store.read(f"data/{name}") == (tmp_path / "local" / "data" / name).read_bytes()
    assert len(store.names("data")) == sum(path.startswith("data/") for path in local)


@pytest.fixture
def ray(s3):
    with ray_here(2) as address:  # whose workers know where the bucket is
        yield address


@pytest.mark.slow
def test_students_are_made_from_there(s3, data, cli, tmp_path, tiny_models, ray):
    """By a process of Ray's; those from this disk, by this one."""
    s3.faults.every = 30
    settings = ["--init", tiny_models.mask, "--budgets", "1,8", "--updates", 4, "--batch-size", 4]
    for name, where, address in (("there", with_keys(s3), ray), ("here", data, "local")):
        outcome = cli("distill", "--data", where, "--out", tmp_path / name, "--address", address, *settings)
        assert outcome.code == 0, outcome.stderr
    assert tree(tmp_path / "there" / "model.safetensors") == tree(tmp_path / "here" / "model.safetensors")
    assert all(SECRET.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(yaml.safe_dump({
        "name": "tiny", "question": "Which?", "base": {"budgets": {1: 1, 8: 1}, "init": str(tiny_models.mask), "optim": {"steps": 2, "batch_size": 4}},
        "factors": {"data.arm": ["shaped", "blind"]},
        "evaluate": {"steps": [2], "samples": 4, "evaluator": [str(tiny_models.ar)], "corpus": {"path": str(write_corpus(tmp_path / "corpus.txt", 400))}}}))
    outcome = cli("ablate", sweep, "--data", with_keys(s3), "--out", tmp_path / "sweep")
    assert outcome.code == 0, outcome.stderr
    assert all(SECRET.encode() not in path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file())
