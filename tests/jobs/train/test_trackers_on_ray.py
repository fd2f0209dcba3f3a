"""A tracker where a training runs in several processes on Ray: one run, of the first process, whatever is killed; its faults are heard of."""

import json
import os
import signal

import psutil
import pytest
import yaml

from tests.commands import named, running, wait_for
from tests.jobs.distill.test_run import step_of
from tests.support import copy_dataset, write_corpus
from tsdfm.jobs.shell.trackers import RUNS_FILE
from tsdfm.pipeline.models.folder import state_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
UPDATES = 200
# A client of the shape of trackio's, which any process can import, and which writes down what it is told.
CLIENT = """
import json, os

def _note(**told):
    with open(os.environ["TRACKED"], "a") as file:
        file.write(json.dumps(told) + "\\n")

class Run:
    def __init__(self, name):
        self.name = name
    def log(self, metrics, step=None):
        if os.environ.get("TRACKER_FAILS"):
            raise ConnectionError("503\\nslow down")
        _note(run=self.name, step=step, metrics=metrics)
    def finish(self):
        _note(end=self.name)

def init(project, name=None, config=None, resume="never"):
    if os.environ.get("TRACKER_REFUSES"):
        raise PermissionError("no API key\\nlog in")
    _note(open=name, pid=os.getpid(), workers=config["workers"])
    return Run(name)
"""


@pytest.fixture
def tracked(tmp_path, monkeypatch):
    """What the tracker has been told so far."""
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "trackio.py").write_text(CLIENT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "clients"), prepend=os.pathsep)
    monkeypatch.setenv("TRACKED", str(tmp_path / "told.jsonl"))
    (tmp_path / "told.jsonl").touch()

    def told(what: str) -> list[dict]:
        found = [json.loads(line) for line in (tmp_path / "told.jsonl").read_text().splitlines()]
        return [each for each in found if what in each]

    return told


def command(tmp_path, name, tiny_models, workers=2, updates=UPDATES):
    optim = {"steps": updates, "batch_size": 8, "log_every": 5, "checkpoint_every": 10}
    if name == "distill":
        copy_dataset(tmp_path / "data", tiny_models)
        settings = {"data": {"paths": [str(tmp_path / "data")]}, "budgets": {1: 1.0, 8: 1.0}}
    else:
        settings = {"corpus": {"path": str(write_corpus(tmp_path / "texts.txt", 300))}, "vocab_size": 300, "length": 16, "cond_dim": 16,
                    "shape": {"hidden_size": 16, "n_blocks": 1, "n_heads": 2}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**settings, "optim": optim, "workers": workers, "tracker": "trackio"}))
    return [name, file, "--out", tmp_path / "model"]


def trainers() -> list[psutil.Process]:
    return named("RayTrainWorker", os.getpid())


def test_one_run_gets_every_logged_update_whatever_is_killed(tmp_path, tiny_models, tracked):
    with running(*command(tmp_path, "pretrain", tiny_models)) as process:
        wait_for(lambda: trainers() or process.poll() is not None)
        victim = trainers()[0]  # to look for it takes a while, in which the training goes on
        wait_for(lambda: step_of(tmp_path / "model") >= 40 or process.poll() is not None)
        victim.kill()
        _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    [run] = {each["open"] for each in tracked("open")}
    assert len(tracked("open")) == 2  # by the first process of the group, and by that of the next
    assert json.loads((state_folder(tmp_path / "model") / RUNS_FILE).read_text()) == {"trackio": run}
    assert {each["run"] for each in tracked("step")} == {run}
    steps = [each["step"] for each in tracked("step")]
    assert set(steps) == {1, *range(5, UPDATES + 1, 5)} or set(steps) == set(range(5, UPDATES + 1, 5))
    assert tracked("end")[-1] == {"end": run}
    assert all("loss" in each["metrics"] for each in tracked("step"))


@pytest.mark.release
def test_an_interrupt_ends_the_run_and_the_same_command_goes_on_in_it(tmp_path, tiny_models, tracked):
    line = command(tmp_path, "distill", tiny_models)
    with running(*line) as process:
        wait_for(lambda: step_of(tmp_path / "model") >= 20 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=200)
    assert process.returncode == 130, stderr
    assert len(tracked("end")) == 1
    with running(*line) as again:
        _, stderr = again.communicate(timeout=280)
    assert again.returncode == 0, stderr
    assert len({each["open"] for each in tracked("open")}) == 1
    steps = [each["step"] for each in tracked("step")]
    assert steps == sorted(set(steps))  # a clean stop: nothing is told twice


def test_one_that_fails_is_told_of_by_the_driver_and_the_training_goes_on(tmp_path, tiny_models, tracked, monkeypatch):
    monkeypatch.setenv("TRACKER_FAILS", "1")
    with running(*command(tmp_path, "distill", tiny_models, updates=20)) as process:
        _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    assert stderr.count("Warning: trackio failed (503); the training goes on without it") == 1
    assert "Traceback" not in stderr


def test_one_that_can_not_open_a_run_is_refused_in_one_line(tmp_path, tiny_models, tracked, monkeypatch):
    """By one process, without Ray: what a process on Ray refuses, the driver says as it says all else."""
    monkeypatch.setenv("TRACKER_REFUSES", "1")
    with running(*command(tmp_path, "distill", tiny_models, workers=1)) as process:
        _, stderr = process.communicate(timeout=280)
    assert process.returncode == 2, stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith("Error: --tracker trackio: no run could be opened (no API key")
    assert "Traceback" not in stderr
    assert not (tmp_path / "model").exists()
