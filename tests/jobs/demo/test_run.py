"""The demo end to end on a small setting, its rerun, and the commands that it says reproduce it."""

import json
import shlex
import shutil
import time
from typing import Any

import click
import pytest
import torch

from tests.support import make_dataset, present, ray_here
from tsdfm.jobs.cli import cli as group
from tsdfm.jobs.demo import run as module
from tsdfm.pipeline.training.data_parallel import Place
from tsdfm.pipeline.training.distill import train_at
from tsdfm.schemas.base import InputError
from tsdfm.schemas.demo import DemoConfig
from tsdfm.schemas.distill import DistillConfig

SMALL = ("--trajectories", 8, "--updates", 4, "--number", 8, "--json")


@pytest.fixture
def stages(tmp_path):
    return module.plan(DemoConfig(out=str(tmp_path / "out"), trajectories=300, updates=20, samples=16))


def test_the_commands_are_the_stages(stages, monkeypatch, tmp_path):
    """Every line, parsed by the command line itself, gives the config that the demo runs."""
    found: dict[str, list[Any]] = {"generate": [], "distill": [], "evaluate": []}
    monkeypatch.setattr("tsdfm.jobs.generate.run.generate", lambda config: found["generate"].append(config) or 1 / 0)
    monkeypatch.setattr("tsdfm.jobs.distill.run.distill", lambda config, out: found["distill"].append((out, config)) or 1 / 0)
    monkeypatch.setattr("tsdfm.jobs.evaluate.run.evaluate", lambda config, *_: found["evaluate"].append(config) or 1 / 0)
    for line in module.commands(stages):
        name, command, *arguments = shlex.split(line)
        assert name == "tsdfm-pipeline"
        if command in found:
            with pytest.raises(ZeroDivisionError):
                group.main([command, *arguments], standalone_mode=False)
        else:
            present(group.get_command(click.Context(group), command)).make_context(command, list(arguments))
    assert found["generate"] == [stages.data]
    assert found["distill"] == [(stages.out / f"student-{arm}", config) for arm, config in stages.students.items()]
    assert found["evaluate"] == list(stages.evaluations.values())


def test_students_differ_in_their_arm_alone(stages):
    blind, shaped = (stages.students[arm].model_dump() for arm in ("blind", "shaped"))
    assert (blind["data"].pop("arm"), shaped["data"].pop("arm")) == ("blind", "shaped")
    assert blind == shaped
    assert all(each.seed != stages.data.rollout.seed for each in stages.evaluations.values())


def test_a_remote_folder_is_refused():
    with pytest.raises(InputError, match="local folder"):
        module.plan(DemoConfig(out="memory://demo"))


@pytest.fixture
def distilled(monkeypatch):
    """The configs that the demo has trained: in this process, without Ray."""
    made = []

    def distill(config, out):
        train_at(Place(0, 1, torch.device("cpu")), config, out, lambda step, scalars: None)
        made.append(config)

    monkeypatch.setattr(module, "distill", distill)
    return made


def test_only_the_very_student_is_kept(tmp_path, tiny_models, distilled):
    folder, state = tmp_path / "student", tmp_path / "student.training"
    header = state / "training_state.json"

    def outcome(data="data", updates=3):
        distilled.clear()
        config = DistillConfig(data={"paths": [str(tmp_path / data)]}, optim={"steps": updates, "batch_size": 4}, init=str(tiny_models.mask))
        said = module._distil(config, folder)
        assert said == ("made" if distilled else "kept")
        assert module._is_state_of(state, module._wanted(config)) == state.exists()
        return said

    make_dataset(tmp_path / "data", tiny_models)
    make_dataset(tmp_path / "other", tiny_models, rollout={"steps": 8, "batch_size": 4, "seed": 1})
    assert outcome() == "made"
    assert outcome() == "kept"
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    assert outcome("elsewhere") == "kept"
    assert outcome("elsewhere", updates=4) == "made"  # although there is state of another config
    assert outcome("elsewhere", updates=4) == "kept"
    shutil.rmtree(folder)
    before = header.stat().st_mtime_ns
    assert outcome("elsewhere", updates=4) == "made"
    assert header.stat().st_mtime_ns == before  # resumed from its own state, at the end
    assert outcome("other", updates=4) == "made"
    assert outcome("other", updates=4) == "kept"
    shutil.rmtree(state)
    assert outcome("other", updates=4) == "kept"


@pytest.fixture
def ray():
    with ray_here(2):
        yield


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("ray")
def test_a_small_demo_and_its_rerun(cli, tmp_path):
    out = tmp_path / "out"
    first = cli("demo", "--out", out, *SMALL)
    assert first.code == 0, first.stderr
    report = json.loads(first.stdout)
    page = (out / "report.html").read_text()
    assert report["report"] == str(out / "report.html")
    assert "<html" in (out / "trajectories.html").read_text()
    assert report["students"] == {"blind": "made", "shaped": "made"}
    assert report["headline"][0] in first.stderr
    measured = {(row["role"], row["steps"], row["temperature"]) for row in report["rows"]}
    assert {("real", None, None), ("teacher", 8, 1.0), ("teacher", 64, 1.0), ("shaped", 8, 0.7), ("blind", 16, 1.0)} <= measured
    assert page.count("<svg ") == 2 * 2  # of 4 updates no curve is drawn
    assert page.count("<article") == 4 * 4
    for heading in ("Is it only temperature?", "What shaping did", "Training", "Texts side by side", "Commands"):
        assert f"<h2>{heading}" in page, heading

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")
             if path.suffix in (".parquet", ".safetensors") or path.name == "training.json"}
    began = time.monotonic()
    again = cli("demo", "--out", out, *SMALL)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["students"] == {"blind": "kept", "shaped": "kept"}
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (out / "report.html").read_text() == page
    assert time.monotonic() - began < sum(report["seconds"].values())

    shutil.rmtree(out / "student-blind.training")
    other = cli("demo", "--out", out, *SMALL[:2], "--updates", 5, *SMALL[4:])
    assert other.code == 0, other.stderr
    assert json.loads(other.stdout)["students"] == {"blind": "made", "shaped": "made"}
    assert cli("demo", "--out", out, "--trajectories", 9).code == 2  # another dataset is never overwritten
