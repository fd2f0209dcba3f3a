"""The demo end to end on a small setting, its rerun, and the commands that it says reproduce it."""

import json
import shlex
import shutil
from dataclasses import replace
from typing import Any

import click
import pytest
import torch

from tests.support import copy_dataset, make_dataset, present, ray_here
from tsdfm.jobs.cli import cli as group
from tsdfm.jobs.demo import plan as module
from tsdfm.jobs.demo import students as students_of
from tsdfm.pipeline.training.loop.data_parallel import Place
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
    assert found["distill"] == [(stages.student(arm), config) for arm, config in stages.students.items()]
    assert found["evaluate"] == list(stages.evaluations.values())


def test_students_differ_in_their_arm_alone(stages):
    blind, shaped = (stages.students[arm].model_dump() for arm in ("blind", "shaped"))
    assert (blind["data"].pop("arm"), shaped["data"].pop("arm")) == ("blind", "shaped")
    assert blind == shaped
    assert all(each.seed != stages.data.rollout.seed for each in stages.evaluations.values())


def test_a_remote_folder_is_refused():
    with pytest.raises(InputError, match="local folder"):
        module.plan(DemoConfig(out="memory://demo"))


def test_what_is_compared_differs_in_one_thing(stages):
    """The teacher in many and in few steps, on independent and on spaced clocks; students on the clocks of their data."""
    rollout = stages.data.rollout
    assert (rollout.clocks, rollout.steps, rollout.temperature) == ("spaced", 8, 0.9)
    assert list(stages.students["shaped"].budgets) == [rollout.steps]
    found = {name: (each.clocks, each.steps, len(each.model)) for name, each in stages.evaluations.items()}
    assert found == {"teacher-slow": ("independent", (1024,), 1), "teacher": ("independent", (8,), 1), "spaced": ("spaced", (8,), 3)}
    assert {(each.samples, each.seed, tuple(each.evaluator), each.threads) for each in stages.evaluations.values()} == {(16, 1, ("embedded",), 1)}
    for each in stages.evaluations.values():  # the own temperatures of all are among them
        assert {rollout.temperature, 1.0} <= set(each.swept)


@pytest.fixture
def trained(monkeypatch):
    """The folders of the trainings that the demo has run: in this process, without Ray."""
    made = []

    def train_all(trainings, loop):
        for each in trainings:
            loop(Place(0, 1, torch.device("cpu")), each.config, each.out, lambda step, scalars: None)
            made.append(each.out)

    monkeypatch.setattr(students_of, "train_all", train_all)
    return made


def test_only_the_very_student_is_kept(tmp_path, tiny_models, stages, trained):
    folder, state = tmp_path / "student-blind", tmp_path / "student-blind.training"
    header = state / "training_state.json"

    def outcome(data="data", updates=3):
        trained.clear()
        config = DistillConfig(data={"paths": [str(tmp_path / data)], "held_out": 0.25}, patience=2, alike=True, init=str(tiny_models.mask),
                               optim={"steps": updates, "batch_size": 4, "log_every": 2})
        mine = replace(stages, out=tmp_path, students={"blind": config})
        said = students_of.distil(mine)["blind"]
        assert trained == ([folder] if said == "made" else [])
        assert [step for step, _ in students_of.curves_of(mine).get("blind", [])][:1] == ([2] if state.exists() else [])
        return said

    copy_dataset(tmp_path / "data", tiny_models)
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
@pytest.mark.release
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
    assert {("real", None, None), ("teacher", 8, 0.9), ("teacher", 1024, 1.0), ("spaced", 8, 0.9), ("rollouts", 8, 0.9), ("shaped", 8, 0.7),
            ("blind", 8, 1.1)} <= measured
    assert page.count("<svg ") == 2 * 2  # of 4 updates no curve is drawn
    assert page.count("<article") == 4 * 6
    for heading in ("Would a lower temperature do?", "All figures", "A text forming", "What the compass chose", "Training", "Texts side by side", "Commands"):
        assert f"<h2>{heading}" in page, heading

    files = {path: path.stat().st_mtime_ns for path in out.rglob("*")
             if path.suffix in (".parquet", ".safetensors") or path.name == "training.json"}
    again = cli("demo", "--out", out, *SMALL)
    assert again.code == 0, again.stderr
    assert json.loads(again.stdout)["students"] == {"blind": "kept", "shaped": "kept"}
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert (out / "report.html").read_text() == page

    shutil.rmtree(out / "student-blind.training")
    other = cli("demo", "--out", out, *SMALL[:2], "--updates", 5, *SMALL[4:])
    assert other.code == 0, other.stderr
    assert json.loads(other.stdout)["students"] == {"blind": "made", "shaped": "made"}
    assert cli("demo", "--out", out, "--trajectories", 9).code == 2  # another dataset is never overwritten
