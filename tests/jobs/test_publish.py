"""`publish` as a user meets it: what is printed, exit codes, and one line for every refusal."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.commands import running
from tests.loopback_hub import TOKEN, environment
from tests.support import assert_refused, copy_dataset, ray_here
from tests.warm import warm
from tsdfm.pipeline.training.distill import distill
from tsdfm.schemas.distill import DistillConfig


@pytest.fixture
def out(tmp_path, tiny_models):
    copy_dataset(tmp_path / "out", tiny_models)
    return tmp_path / "out"


def test_the_receipt_is_printed_and_in_the_json(cli, hub, out):
    outcome = cli("publish", out, "--repo", "team/runs", "--private", "--license", "cc-by-4.0", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    revision = hub.repos["dataset", "team/runs"].head
    assert report["uri"] == f"hf://datasets/team/runs@{revision}"
    assert (report["changed"], report["changed_files"], report["revision"]) == (True, 13, revision)
    assert f"tsdfm-pipeline distill --data hf://datasets/team/runs@{revision} --out STUDENT" in outcome.stderr
    again = cli("publish", out, "--repo", "team/runs", "--private", "--license", "cc-by-4.0", "--json")
    assert "nothing has changed, nothing was sent" in again.stderr
    assert json.loads(again.stdout)["revision"] == revision
    assert TOKEN not in outcome.stdout + outcome.stderr + again.stdout + again.stderr


def test_the_receipt_disturbs_no_other_command(cli, hub, out):
    assert cli("publish", out, "--repo", "team/runs").code == 0
    assert cli("verify", out).code == 0
    assert cli("inspect", out).code == 0
    from tsdfm.pipeline.dataset.manifest import claim, read_manifest
    from tsdfm.pipeline.storage.open_store import open_store

    claim(open_store(str(out)), read_manifest(open_store(str(out))).identity)  # what a rerun of generate begins with


def test_refusals(cli, hub, out, tmp_path, monkeypatch):
    assert_refused(cli("publish", out, "--repo", "runs"), "repo", "command line")
    assert_refused(cli("publish", out, "--repo", "team/..runs--"), "team/..runs--", "can't be a repository's name")
    assert_refused(cli("publish", tmp_path / "nothing", "--repo", "team/runs"), "no dataset there")
    assert_refused(cli("publish", out, "--repo", "team/runs", "--evaluation", tmp_path), "--evaluation: is of students")
    assert_refused(cli("publish", out, "--repo", "others/runs"), "may not do that")
    hub.quota = 10
    assert_refused(cli("publish", out, "--repo", "team/runs"), "quota", code=1)
    monkeypatch.delenv("HF_TOKEN")
    assert_refused(cli("publish", out, "--repo", "team/runs"), "not logged in")


def test_a_hub_that_cannot_be_reached(cli, hub, out):
    hub.stop()
    assert_refused(cli("publish", out, "--repo", "team/runs"), "the Hub can't be reached", code=1)


def test_an_interrupt_stops_cleanly_and_says_how_to_resume(cli, hub, out, monkeypatch):
    from tsdfm.pipeline.publishing import upload as hub_upload

    add = hub_upload.Upload.add

    def interrupted(self, path, data):
        add(self, path, data)
        if path.startswith("data/train-00000"):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(hub_upload.Upload, "add", interrupted)
    outcome = cli("publish", out, "--repo", "team/runs")
    assert_refused(outcome, "stopped while uploading", "tsdfm-pipeline publish", code=130)
    monkeypatch.setattr(hub_upload.Upload, "add", add)
    assert cli("publish", out, "--repo", "team/runs").code == 0


def test_there_is_no_flag_for_a_token(cli):
    assert not re.search(r"--\S*token", cli("publish", "--help").stdout)


@pytest.fixture
def ray(hub):
    with ray_here(1) as address:  # whose workers know where the Hub is
        yield address


@pytest.mark.parametrize("where", ["here", pytest.param("on Ray", marks=[pytest.mark.slow, pytest.mark.release])])
def test_a_student_is_distilled_from_what_was_published(where, cli, hub, out, tmp_path, tiny_models, request):  # noqa: PLR0913
    address = "local" if where == "here" else request.getfixturevalue("ray")
    uri = json.loads(cli("publish", out, "--repo", "team/runs", "--json").stdout)["uri"]
    outcome = cli("distill", "--data", uri, "--init", tiny_models.mask, "--updates", 4, "--batch-size", 4, "--budgets", "1,4", "--out", tmp_path / "remote",
                  "--address", address)
    assert outcome.code == 0, outcome.stderr
    config = {"data": {"paths": [str(out)]}, "init": str(tiny_models.mask), "optim": {"steps": 4, "batch_size": 4}, "budgets": {1: 1, 4: 1}}
    assert distill(DistillConfig.model_validate(config), tmp_path / "local") is not None
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("remote", "local")]
    assert weights[0] == weights[1]
    assert cli("publish", tmp_path / "remote", "--repo", "team/student").code == 0
    from huggingface_hub import ModelCard

    assert ModelCard(hub.repos["model", "team/student"].files["README.md"].decode()).data["datasets"] == ["team/runs"]


@pytest.fixture
def mother(hub, tmp_path, monkeypatch):
    """Runs commands that have known from the start where the Hub is."""
    for name, value in environment(hub, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    with warm("tsdfm.jobs.start", "tsdfm.jobs.cli", "tsdfm.pipeline.publishing.dataset") as found:
        yield found


@pytest.mark.slow
def test_a_publication_killed_at_random_requests_is_finished(hub, out, mother):
    """SIGKILL of the process at a random one of its requests, four times; the last run completes it."""
    line = ["publish", out, "--repo", "team/runs"]
    with running(*line[:-1], "team/whole", mother=mother) as whole:
        assert whole.wait() == 0, whole.stderr.read()
    requests, draw, killed = len(hub.calls), random.Random(7), 0
    hub.objects.clear()
    hub.sent.clear()
    for _ in range(4):
        until = len(hub.calls) + draw.randrange(requests)
        with running(*line, mother=mother) as process:
            while len(hub.calls) <= until and process.poll() is None:
                time.sleep(0.0005)
            killed += process.poll() is None
            process.kill()
    assert killed >= 2
    with running(*line, "--json", mother=mother) as done:
        stdout, stderr = done.communicate()
    assert done.returncode == 0, stderr
    files, reference = (hub.repos["dataset", name].files for name in ("team/runs", "team/whole"))
    assert files.keys() == reference.keys()
    assert all(files[path] == reference[path] for path in files if path != "README.md")  # it names the repository
    assert json.loads(stdout)["revision"] == hub.repos["dataset", "team/runs"].head


@pytest.mark.slow
def test_a_published_student_writes_without_this_package(cli, hub, out, tmp_path, tiny_models):
    """transformers' real client loads it from the Hub in a process that can't import the package, and writes the same texts."""
    pytest.importorskip("transformers")
    outcome = cli("distill", "--data", out, "--init", tiny_models.mask, "--updates", "4", "--batch-size", "4", "--budgets", "1,4",
                  "--out", tmp_path / "student")
    assert outcome.code == 0, outcome.stderr
    assert cli("publish", tmp_path / "student", "--repo", "team/student").code == 0
    code = """
import json, sys
sys.modules["tsdfm"] = None  # importing it raises
from transformers import AutoModelForMaskedLM, AutoTokenizer
model = AutoModelForMaskedLM.from_pretrained("team/student", trust_remote_code=True)
AutoTokenizer.from_pretrained("team/student", trust_remote_code=True)
print(json.dumps(model.generate(steps=4, number=3, seed=2).tolist()))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], env=environment(hub, tmp_path / "clean"), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    from tsdfm.pipeline.models.folder import load_denoiser

    mine = load_denoiser(tmp_path / "student")
    texts = [mine.vocabulary.decode(row) for row in json.loads(done.stdout.splitlines()[-1])]
    for model in (tmp_path / "student", "hub:team/student"):
        sampled = cli("sample", "--model", model, "--steps", "4", "-n", "3", "--seed", "2", "--json")
        assert sampled.code == 0, sampled.stderr
        assert json.loads(sampled.stdout)["texts"] == texts
