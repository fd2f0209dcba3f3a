"""Trackers: they get what TensorBoard gets, in one run however often the training was cut, no secrets, and can't harm a training."""

import importlib.machinery
import json
import shutil
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from tests.support import assert_refused, copy_dataset, write_corpus
from tsdfm.jobs.shell.trackers import RUNS_FILE, _spent, tracked
from tsdfm.pipeline.models.folder import state_folder
from tsdfm.schemas.distill import DistillConfig

NAMES = ("wandb", "trackio", "mlflow")
UPDATES = 6


class Client(ModuleType):
    """A client of the shape of the real ones: their functions take these arguments by these names, and no others."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.runs: dict[str, dict[int, dict[str, float]]] = {}
        self.opened: list[dict[str, Any]] = []
        self.ended: list[object] = []
        self.failing = False
        self.experiment = ""

    def open(self, run: str, **told: Any) -> str:
        self.opened.append(told)
        self.runs.setdefault(run, {})
        return run

    def take(self, run: str, scalars: dict[str, float], step: int) -> None:
        if self.failing:
            raise ConnectionError("503\nslow down")
        self.runs[run][step] = scalars


def wandb() -> Client:
    client = Client("wandb")

    def init(project=None, id=None, name=None, dir=None, config=None, resume=None):
        assert resume == "allow"
        client.open(id, config=config, project=project, name=name)
        return SimpleNamespace(log=lambda data, step=None: client.take(id, data, step), finish=lambda exit_code=None: client.ended.append(exit_code))

    vars(client)["init"] = init
    return client


def trackio() -> Client:
    client = Client("trackio")

    def init(project, name=None, config=None, resume="never"):
        assert resume == "allow"
        client.open(name, config=config, project=project, name=name)
        return SimpleNamespace(log=lambda metrics, step=None: client.take(name, metrics, step), finish=lambda: client.ended.append(0))

    vars(client)["init"] = init
    return client


def mlflow() -> Client:
    client, active = Client("mlflow"), list[str]()

    def start_run(run_id=None, run_name=None):
        assert run_id is None or run_id in client.runs
        active[:] = [client.open(run_id or f"run{len(client.runs)}", name=run_name, project=client.experiment)]
        return SimpleNamespace(info=SimpleNamespace(run_id=active[0]))

    vars(client).update(
        set_experiment=lambda experiment_name: setattr(client, "experiment", experiment_name), start_run=start_run,
        log_params=lambda params: client.opened[-1].update(config=params), log_metrics=lambda metrics, step=None: client.take(active[0], metrics, step),
        end_run=lambda status="FINISHED": client.ended.append({"FINISHED": 0, "KILLED": 1}[status]))
    return client


@pytest.fixture(params=[wandb, trackio, mlflow])
def client(request, monkeypatch):
    made = request.param()
    monkeypatch.setitem(sys.modules, made.__name__, made)
    for name in ("WANDB_PROJECT", "TRACKIO_PROJECT", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    return made


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    settings = {"corpus": {"path": str(write_corpus(folder / "texts.txt", 300))}, "vocab_size": 300, "length": 16, "cond_dim": 16,
                "shape": {"hidden_size": 16, "n_blocks": 1, "n_heads": 2},
                "optim": {"steps": UPDATES, "batch_size": 4, "log_every": 1, "checkpoint_every": 2}}
    (folder / "teacher.yaml").write_text(yaml.safe_dump(settings))
    return folder / "teacher.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_models):
    folder = tmp_path_factory.mktemp("data") / "out"
    copy_dataset(folder, tiny_models)
    return folder


def test_it_gets_what_tensorboard_gets(client, cli, config, tmp_path):
    outcome = cli("pretrain", config, "--out", tmp_path / "teacher", "--tracker", client.__name__)
    assert outcome.code == 0, outcome.stderr
    [run] = client.runs.values()
    events = EventAccumulator(str(tmp_path / "teacher.training" / "tensorboard"))
    events.Reload()
    assert set(run[1]) == set(events.Tags()["scalars"])
    for name in run[1]:
        assert {each.step: each.value for each in events.Scalars(name)} == pytest.approx({step: scalars[name] for step, scalars in run.items()})
    assert client.ended == [0]
    assert client.opened[0]["project"] == "tsdfm-pipeline"
    assert client.opened[0]["config"]["optim.steps"] == UPDATES


def test_a_training_that_goes_on_goes_on_in_its_run(client, cli, config, tmp_path):
    """And the tracker is no part of what a training is: the state that one left is taken without it."""
    out = tmp_path / "teacher"
    first = cli("pretrain", config, "--out", out, "--tracker", client.__name__)
    assert first.code == 0, first.stderr
    assert json.loads((state_folder(out) / RUNS_FILE).read_text()) == {client.__name__: next(iter(client.runs))}
    shutil.rmtree(out)  # a model that is there would be finished
    again = cli("pretrain", config, "--out", out, "--tracker", client.__name__)
    assert again.code == 0, again.stderr
    assert len(client.opened) == 2
    assert len(client.runs) == 1
    shutil.rmtree(out)
    assert cli("pretrain", config, "--out", out, "--tracker", "none").code == 0
    assert len(client.opened) == 2


def test_secrets_of_uris_are_not_told(client, tmp_path):
    config = DistillConfig.model_validate({"data": {"paths": ["s3://KEY:s3cr3t@bucket/out?token=t0ken"]}, "tracker": client.__name__})
    with tracked(config, "distill", tmp_path / "student", tmp_path / "state") as track:
        track(1, {"loss": 1.0})
    assert "s3://bucket/out" in json.dumps(client.opened)
    assert not any(secret in json.dumps(client.opened) + (tmp_path / "state" / RUNS_FILE).read_text() for secret in ("KEY", "s3cr3t", "t0ken"))
    assert client.ended in ([1], [0])


def test_a_tracker_that_fails_is_told_once_and_the_training_goes_on(client, cli, config, tmp_path):
    client.failing = True
    outcome = cli("pretrain", config, "--out", tmp_path / "teacher", "--tracker", client.__name__)
    assert outcome.code == 0, outcome.stderr
    assert outcome.stderr.count(f"Warning: {client.__name__} failed (503); the training goes on without it") == 1
    assert "Traceback" not in outcome.stderr


def test_one_that_can_not_open_a_run_is_refused_in_one_line(client, cli, config, tmp_path, monkeypatch):
    def refuses(*arguments, **named):
        raise PermissionError("no API key\nlog in")

    monkeypatch.setitem(vars(client), "start_run" if client.__name__ == "mlflow" else "init", refuses)
    assert_refused(cli("pretrain", config, "--out", tmp_path / "teacher", "--tracker", client.__name__),
                   f"--tracker {client.__name__}", "no run could be opened", "no API key")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["pretrain", "fit-compass", "distill"])
def test_one_that_is_not_installed_is_refused_before_anything_is_done(name, command, cli, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tsdfm.jobs.shell.trackers.find_spec", lambda name: None)
    given = {"pretrain": [], "fit-compass": [], "distill": ["--data", data, "--budgets", "1,8"]}[command]
    assert_refused(cli(command, *given, "--out", tmp_path / "out", "--tracker", name), f"--tracker {name}", f"tsdfm-pipeline[{name}]")
    assert not state_folder(tmp_path / "out").exists()


@pytest.mark.parametrize(("held_out", "patience", "spent"), [
    ([3.0, 2.0, 2.5, 2.0], 2, True), ([3.0, 2.0, 2.5], 2, False), ([1.0, 2.0, 3.0], None, False), ([], 1, False)])
def test_a_training_that_ended_early_is_whole(held_out, patience, spent):
    assert _spent(held_out, patience) == spent
