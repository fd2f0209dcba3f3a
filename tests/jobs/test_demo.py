"""The demo end to end on a small setting, its rerun, and the commands that it says reproduce it."""

import json
import shlex
import shutil
import time

import pytest

from tsdfm.jobs import demo as module
from tsdfm.jobs.cli import cli as group
from tsdfm.schemas.base import InputError

SMALL = ("--trajectories", 8, "--updates", 4, "--samples", 8, "--json")


@pytest.fixture
def stages(tmp_path):
    return module.plan(str(tmp_path / "out"), 300, 20, 16)


def test_the_commands_are_the_stages(stages, monkeypatch, tmp_path):
    """Every line, parsed by the command line itself, gives the config that the demo runs."""
    found = {"generate": [], "distill": [], "evaluate": []}
    monkeypatch.setattr("tsdfm.jobs.generate.generate", lambda config: found["generate"].append(config) or 1 / 0)
    monkeypatch.setattr("tsdfm.jobs.distill.distill", lambda config, out: found["distill"].append((out, config)) or 1 / 0)
    monkeypatch.setattr("tsdfm.jobs.evaluate.evaluate", lambda config: found["evaluate"].append(config) or 1 / 0)
    for line in module.commands(stages):
        name, command, *arguments = shlex.split(line)
        assert name == "tsdfm-pipeline"
        if command in found:
            with pytest.raises(ZeroDivisionError):
                group.main([command, *arguments], standalone_mode=False)
        else:
            group.commands[command].make_context(command, list(arguments))
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
        module.plan("memory://demo", 8, 4, 8)


def test_only_the_very_student_is_kept(tmp_path, stages, monkeypatch):
    folder, made = tmp_path / "student", []
    monkeypatch.setattr(module, "distill", lambda config, out: made.append(config))
    config = stages.students["blind"]

    def write(config, dataset, where):
        record = json.loads(config.model_dump_json())
        where.mkdir(exist_ok=True)
        (where / "training.json").write_text(json.dumps({"config": record, "data": {"datasets": [{"identity": dataset}]}}))
        (where / "training_state.json").write_text(json.dumps({"step": 1, "identity": {**record, "datasets": [dataset]}}))

    def outcome(config=config, dataset="d"):
        made.clear()
        said = module._distil(config, folder, dataset)
        assert (said == "kept") == (made == [])
        return said

    state = tmp_path / "student.training"
    assert outcome() == "made"  # nothing is there
    write(config, "d", folder)
    write(config, "d", state)
    assert outcome() == "kept"
    moved = config.model_copy(update={"data": config.data.model_copy(update={"paths": ["elsewhere"]})})
    assert outcome(moved) == "kept"  # where the data lies doesn't matter
    assert state.exists()
    longer = config.model_copy(update={"optim": config.optim.model_copy(update={"steps": 21})})
    assert outcome(longer) == "made"
    assert not state.exists()  # of another config
    write(longer, "d", state)
    assert outcome(longer) == "made"
    assert state.exists()  # of this one: distill resumes from it
    assert outcome(config, "other data") == "made"
    assert not state.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
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
    assert page.count("<img") == 3
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
