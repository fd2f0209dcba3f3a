"""`distill` on the command line, in one process and on Ray: refusals, kills, interrupts, several processes, losses that are not finite."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.commands import running, wait_for
from tests.support import Outcome, TinyModels, assert_refused, copy_dataset, make_dataset, present, tree
from tsdfm.jobs.distill import run as module
from tsdfm.pipeline.models.folder import load
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.training.distill import distill, open_reader, open_start
from tsdfm.pipeline.training.loop import data_parallel
from tsdfm.pipeline.training.loop.checkpoint import HEADER_FILE, STATE_FILE
from tsdfm.pipeline.training.loop.data_parallel import Place
from tsdfm.pipeline.training.student_trainer import train_student
from tsdfm.schemas.base import WorkError
from tsdfm.schemas.distill import DistillConfig

UPDATES = 200


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_models) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    copy_dataset(root / "mask", tiny_models)
    make_dataset(root / "blind", tiny_models, arm="blind")
    make_dataset(root / "uniform", tiny_models, teacher=str(tiny_models.uniform), compass="denoiser")
    unfinished = root / "unfinished"
    shutil.copytree(root / "mask", unfinished)
    manifest = json.loads((unfinished / "manifest.json").read_text())
    (unfinished / "manifest.json").unlink()
    (unfinished / ".run.json").write_text(json.dumps(manifest["identity"]))
    (root / "empty").mkdir()
    return {name: root / name for name in ("mask", "blind", "uniform", "unfinished", "empty")}


# ------------------------------------------------------------------ refused before anything is written

Fault = tuple[list[object], list[str]]
BUDGETS = ["--budgets", "1,2,4,8"]


def faults(data: dict[str, Path], models: TinyModels) -> dict[str, Fault]:
    mask = ["--data", data["mask"], *BUDGETS]
    return {
        "no dataset": ([], ["--data", "no dataset given"]),
        "an empty name": (["--data", ""], ["data.paths"]),
        "a folder that is none": (["--data", data["empty"]], [str(data["empty"]), "no dataset there"]),
        "a folder that is not there": (["--data", "/nowhere/out"], ["/nowhere/out", "no dataset there"]),
        "a model in place of a dataset": (["--data", models.mask], [str(models.mask), "no dataset there"]),
        "an unfinished dataset": (["--data", data["unfinished"]], ["unfinished", "generate"]),
        "one sound and one unfinished": ([*mask, "--data", data["unfinished"]], [str(data["unfinished"]), "unfinished"]),
        "mixed sources": ([*mask, "--data", data["uniform"]], ["can't be mixed", "teacher.source"]),
        "an arm that was not made": (["--data", data["blind"], *BUDGETS], ["shaped", "blind", "data.arm"]),
        "no top-k for a KL": ([*mask, "--objective", "forward_kl"], ["holds no top-k", "forward_kl"]),
        "weights of another vocabulary": ([*mask, "--init", models.foreign], [str(models.foreign), "vocab_size"]),
        "weights of another source": ([*mask, "--init", models.uniform], [str(models.uniform), "source"]),
        "a compass to start from": ([*mask, "--init", models.ar], [str(models.ar), "holds a causal model"]),
        "no weights there": ([*mask, "--init", "/nowhere/teacher"], ["/nowhere/teacher", "no such model folder"]),
        "the embedded teacher of other data": ([*mask, "--init", "embedded"], ["teacher-mask", "vocab_size"]),
        "budgets that do not divide": (["--data", data["mask"], "--budgets", "2,3"], ["3 does not divide", "N = 8", "1, 2, 4, 8"]),
        "budgets of words": ([*mask, "--budgets", "abc"], ["budgets", "'abc'", "1,2,4,8"]),
        "no budgets": ([*mask, "--budgets", ""], ["budgets"]),
        "budgets of nothing": ([*mask, "--budgets", "1,,2"], ["budgets", "'1,,2'"]),
        "a budget of no step": ([*mask, "--budgets", "0"], ["budgets.0", "greater than or equal to 1"]),
        "a negative budget": ([*mask, "--budgets=-2"], ["budgets.-2", "greater than or equal to 1"]),
        "a budget twice": ([*mask, "--budgets", "8,4,8:2"], ["budgets", "8", "twice"]),
        "a budget of more weight than a sum can hold": ([*mask, "--budgets", "4:1e308,8:1e308"], ["budgets.4", "1000000000"]),
        "a budget of weight zero": ([*mask, "--budgets", "8:0"], ["budgets.8", "greater than 0"]),
        "a budget of infinite weight": ([*mask, "--budgets", "8:inf"], ["budgets.8", "finite"]),
        "a weight too many": ([*mask, "--weight", 1, "--weight", 2], ["data", "2 given for 1 datasets"]),
        "a weight of zero": ([*mask, "--weight", 0], ["data.weights.0", "greater than 0"]),
        "a weight of infinity": ([*mask, "--weight", "inf"], ["data.weights.0", "finite"]),
        "workers that do not divide the batch": ([*mask, "--workers", 3], ["batch_size", "32", "workers * micro_batches (3)"]),
        "parts that do not divide the batch": ([*mask, "--workers", 2, "--micro-batches", 5], ["batch_size", "(10)"]),
        "no update": ([*mask, "--updates", 0], ["optim.steps"]),
        "no learning": ([*mask, "--lr", 0], ["optim.lr"]),
        "an infinite learning rate": ([*mask, "--lr", "inf"], ["optim.lr", "finite"]),
        "a learning rate that is none": ([*mask, "--lr", "nan"], ["optim.lr"]),
        "a negative beta": ([*mask, "--beta", -1], ["beta"]),
        "no trajectories": ([*mask, "--trajectories", 0], ["data.trajectories"]),
        "an objective nobody knows": ([*mask, "--objective", "mse"], ["--objective", "mse"]),
        "no worker": ([*mask, "--workers", 0], ["workers"]),
        "nobody listens": ([*mask, "--address", "127.0.0.1:1"], ["127.0.0.1:1", "nobody listens"]),
        "an unknown Hub name": (["--data", "hf://models/x"], ["hf://models/x", "not a Hub dataset"]),
    }


@pytest.mark.parametrize("name", faults(dict.fromkeys(("mask", "blind", "uniform", "unfinished", "empty"), Path("x")),
                                        TinyModels(*[Path("x")] * 6)))
def test_bad_input_is_one_line_and_leaves_nothing(name, cli, data, tmp_path, tiny_models):
    arguments, words = faults(data, tiny_models)[name]
    before = tree(data["mask"].parent)
    assert_refused(cli("distill", "--out", tmp_path / "student", *arguments), *words)
    assert not list(tmp_path.iterdir()) or name == "nobody listens"  # found when all else is settled
    assert not (tmp_path / "student").exists()
    assert tree(data["mask"].parent) == before


def test_an_out_that_cannot_be_used_is_refused_and_left_alone(cli, data, tmp_path, tiny_models):
    base = ("distill", "--data", data["mask"], *BUDGETS)
    assert_refused(cli(*base), "--out")
    thesis = tmp_path / "foreign" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("precious")
    for out in (thesis.parent, thesis, data["mask"]):
        assert_refused(cli(*base, "--out", out), str(out), "not a model folder")
    assert tree(tmp_path).keys() == {"foreign/thesis.tex"}
    assert_refused(cli(*base, "--out", "/proc/tsdfm"), "give a folder you can write to")
    copy = tmp_path / "copy"
    shutil.copytree(tiny_models.mask, copy)
    before = tree(copy)
    assert_refused(cli(*base, "--init", copy, "--out", tmp_path / "foreign" / ".." / "copy"), "weights to start from", "another --out")
    assert tree(copy) == before
    assert not (tmp_path / "copy.training").exists()


def test_without_the_teacher_the_error_says_what_to_give(cli, tmp_path, tiny_models):
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_models.mask, teacher)
    make_dataset(tmp_path / "data", tiny_models, teacher=str(teacher))
    shutil.rmtree(teacher)
    outcome = cli("distill", "--data", tmp_path / "data", *BUDGETS, "--out", tmp_path / "student")
    assert_refused(outcome, str(teacher), "--init FOLDER")
    assert {p.name for p in tmp_path.iterdir()} == {"data"}


def test_a_config_file_is_checked_like_flags_and_flags_override_it(cli, data, tmp_path):
    file = tmp_path / "config.yaml"
    for config, words in [({"objektive": "event"}, ["objektive", "no such field"]), ({"optim": {"stepz": 1}}, ["optim.stepz"]),
                          ({"data": {"paths": "x"}}, ["data.paths"]), ({"budgets": {"many": 1}}, ["budgets.many"])]:
        file.write_text(yaml.safe_dump(config))
        assert_refused(cli("distill", file, "--out", tmp_path / "student"), *words)
    file.write_text(yaml.safe_dump({"data": {"paths": [str(data["empty"])]}, "budgets": {3: 1.0}}))
    assert_refused(cli("distill", file, "--data", data["mask"], "--out", tmp_path / "student"), "3 does not divide")


# ------------------------------------------------------------------ trained: in one process, on Ray where it says so

def step_of(out: Path) -> int:
    """The update of the last checkpoint; 0 without one."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return json.loads((state_of(out) / HEADER_FILE).read_text())["step"]
    return 0


def state_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.training")


def settings(data: Path, **changes: object) -> dict[str, Any]:
    optim = {"steps": UPDATES, "batch_size": 8, "lr": 1e-3, "warmup": 5, "log_every": 5, "checkpoint_every": 20}
    return {"data": {"paths": [str(data)]}, "budgets": {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, "optim": optim} | changes


def config_file(tmp_path: Path, data: Path, **changes: object) -> Path:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(settings(data, **changes)))
    return file


@pytest.fixture(scope="module")
def reference(tmp_path_factory, data) -> dict[str, torch.Tensor]:
    """The student's weights as trained without Ray, in this process."""
    config = DistillConfig.model_validate(settings(data["mask"]))
    student = train_student(open_start(config), tmp_path_factory.mktemp("state"), Place(0, 1, torch.device("cpu")), lambda *_: None)
    return present(student).state_dict()


def assert_is(out: Path, reference: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=tolerance, msg=(name + ": {}").format)


def finish(*arguments: object, cwd: Path | None = None) -> tuple[dict, str]:
    """Run the command to its end: its report, and what it said."""
    with running(*arguments, "--json", cwd=cwd) as process:
        stdout, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    return json.loads(stdout), stderr


@pytest.fixture
def outcome_of(head) -> Callable[..., Outcome]:
    """Runs the command on a cluster."""
    def run(*arguments: object) -> Outcome:
        with running(*arguments, "--address", head.address) as process:
            stdout, stderr = process.communicate(timeout=280)
        return Outcome(process.wait(), stdout, stderr)

    return run


@pytest.mark.slow
def test_a_student_by_relative_paths_is_that_of_one_process_and_opens_everywhere(cli, tmp_path, data, reference, tiny_models):
    shutil.copytree(data["mask"], tmp_path / "made" / "mask")
    (tmp_path / "python").mkdir()  # 'python' is a corpus, not this folder
    config = config_file(tmp_path, Path("made/mask"))
    report, stderr = finish("distill", config.name, "--out", "models/student", cwd=tmp_path)
    out = tmp_path / "models" / "student"
    assert_is(out, reference)
    assert report["fingerprint"] == load(out).fingerprint
    assert report["init"] == load(tiny_models.mask).fingerprint
    assert report["updates"] == UPDATES
    assert report["out"] == str(out)
    assert {"loss/1", "loss/2", "loss/4", "loss/8"} <= report["scalars"].keys()
    assert f"distill: {UPDATES}/{UPDATES}" in stderr
    assert "1/8:" in stderr
    assert {p.name for p in out.iterdir()} == {"README.md", "config.json", "model.safetensors", "tokenizer.json", "training.json"}
    facts = json.loads((out / "training.json").read_text())
    assert DistillConfig.model_validate(facts["config"]).optim.steps == UPDATES
    identity = facts["data"]["datasets"][0]["identity"]
    assert identity[:16] in (out / "README.md").read_text()
    assert any((state_of(out) / "tensorboard").iterdir())
    assert {p.name for p in out.parent.iterdir()} == {"student", "student.training"}
    assert cli("sample", "--model", out, "--steps", 2, "-n", 2).code == 0
    again, _ = finish("distill", config.name, "--out", "models/student", cwd=tmp_path)
    assert again["fingerprint"] == report["fingerprint"]


def test_one_worker_needs_no_ray(tmp_path, data):
    code = f"""
import sys
sys.argv = ["tsdfm-pipeline", "distill", {str(brief(tmp_path, data["mask"]))!r}, "--out", {str(tmp_path / "student")!r}]
from tsdfm.jobs.cli import main
main()
assert "ray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_is_finished_is_said_to_be_and_nothing_is_started(cli, tmp_path, data, monkeypatch):
    """Also without the training state, and by other workers; another config, or weights that are damaged, are trained as ever."""
    out, started = tmp_path / "student", []
    config = config_file(tmp_path, data["mask"], optim={"steps": 2})
    assert distill(DistillConfig.model_validate(yaml.safe_load(config.read_text())), out) is not None
    shutil.rmtree(state_of(out))
    before = tree(out)

    def starts(*arguments):
        started.append(arguments)
        raise WorkError("started")

    monkeypatch.setattr(module, "_here", starts)
    monkeypatch.setattr(module, "_in_a_group", starts)
    for more in ([], ["--workers", 2, "--threads", 1]):
        again = cli("distill", config, "--out", out, "--json", *more)
        assert again.code == 0, again.stderr
        assert f"{out}: is finished" in " ".join(again.stderr.split())
        report = json.loads(again.stdout)
        assert (report["fingerprint"], report["updates"], report["scalars"]) == (load(out).fingerprint, 2, {})
    assert (started, tree(out)) == ([], before)
    assert not state_of(out).exists()
    assert distill(DistillConfig.model_validate(yaml.safe_load(config.read_text())), out) is not None
    assert not state_of(out).exists()
    assert_refused(cli("distill", config, "--out", out, "--seed", 5), "started", code=1)
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes()[:-1])
    assert_refused(cli("distill", config, "--out", out), "started", code=1)
    assert len(started) == 2


def test_a_folder_with_a_training_of_another_config_is_refused_before_anything_starts(cli, tmp_path, data, monkeypatch):
    out, config = tmp_path / "student", config_file(tmp_path, data["mask"], optim={"steps": 4, "log_every": 1})
    assert distill(DistillConfig.model_validate(yaml.safe_load(config.read_text())), out, lambda step, _: step == 2) is None
    before = tree(state_of(out))
    monkeypatch.setattr(module, "_here", None)
    end = cli("distill", config, "--out", out, "--seed", 5)
    assert_refused(end, str(state_of(out)), "a run of another config", "optim.seed")
    assert "updates of" not in end.stderr
    assert tree(state_of(out)) == before


@pytest.mark.slow
def test_a_killed_driver_resumes_to_the_same_bits(tmp_path, data, reference):
    out = tmp_path / "student"
    line = ("distill", config_file(tmp_path, data["mask"]), "--out", out)
    with running(*line) as process:
        wait_for(lambda: step_of(out) >= 40, process)
        process.kill()
        process.wait()
    assert not out.exists()
    finish(*line)
    assert_is(out, reference)


@pytest.mark.slow
def test_a_killed_driver_of_several_processes_resumes_at_once(tmp_path, data, head):
    """What the kill left running lets the folder go by itself."""
    out = tmp_path / "student"
    line = ("distill", config_file(tmp_path, data["mask"]), "--out", out)
    with running(*line, "--workers", 2, "--address", head.address) as process:
        wait_for(lambda: step_of(out) >= 20, process)
        process.kill()
        process.wait()
    assert not out.exists()
    report, stderr = finish(*line)
    assert report["updates"] == UPDATES
    assert f"distill: 5/{UPDATES}" not in stderr  # it went on from the checkpoint


@pytest.mark.slow
def test_a_killed_training_process_is_replaced_and_nothing_shows(tmp_path, data, reference, head):
    out = tmp_path / "student"
    with running("distill", config_file(tmp_path, data["mask"]), "--out", out, "--address", head.address) as process:
        wait_for(lambda: head.workers("RayTrainWorker"), process)
        victim = head.workers("RayTrainWorker")[0]  # to look for it takes a while, in which the training goes on
        wait_for(lambda: step_of(out) >= 40, process)
        victim.kill()
        _, stderr = process.communicate(timeout=280)
    assert process.returncode == 0, stderr
    assert_is(out, reference)


@pytest.mark.slow
def test_two_workers_agree_with_one(tmp_path, data, outcome_of):
    """Few updates, for Adam makes float errors grow; against one process with as many."""
    config = settings(data["mask"], workers=2)
    config["optim"] |= {"steps": 10}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    out = tmp_path / "student"
    outcome = outcome_of("distill", file, "--out", out, "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    alone = DistillConfig.model_validate(config | {"workers": 1})
    lines = []
    student = train_student(open_start(alone), tmp_path / "alone", Place(0, 1, torch.device("cpu")),
                            lambda step, scalars: lines.append(scalars))
    assert_is(out, present(student).state_dict(), tolerance=2e-5)
    assert report["scalars"]["loss"] == pytest.approx(lines[-1]["loss"], rel=1e-4)
    assert report["scalars"]["loss/8"] == pytest.approx(lines[-1]["loss/8"], rel=1e-4)


@pytest.mark.slow
def test_one_interrupt_saves_and_says_how_to_resume(tmp_path, data, reference):
    folder = tmp_path / "a folder"
    folder.mkdir()
    out, file = folder / "student", config_file(tmp_path, data["mask"])
    with running("distill", file, "--out", out) as process:
        wait_for(lambda: step_of(out) >= 20, process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the whole group gets it
        _, stderr = process.communicate(timeout=200)
    last = stderr.strip().splitlines()[-1]
    assert process.returncode == 130, stderr
    assert f"resume with: tsdfm-pipeline distill {file} --out '{out}'" in last
    assert "Traceback" not in stderr
    assert not out.exists()
    assert 20 <= step_of(out) < UPDATES
    finish("distill", file, "--out", out)
    assert_is(out, reference)


@pytest.mark.slow
def test_a_nan_is_one_line_without_a_retry_and_keeps_the_last_checkpoint(tmp_path, data, tiny_models, outcome_of):
    out, copy = tmp_path / "student", tmp_path / "teacher"
    shutil.copytree(tiny_models.mask, copy)
    config = settings(data["mask"], init=str(copy))
    config["optim"] |= {"lr": 1e30, "warmup": 0, "checkpoint_every": 1, "log_every": 1}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert_refused(outcome_of("distill", file, "--out", out), "is kept", "at update", code=1)
    assert not out.exists()
    assert len(list((state_of(out) / "tensorboard").iterdir())) == 1  # each attempt begins a file
    before = tree(state_of(out))
    if (state_of(out) / STATE_FILE).exists():
        assert all(tensor.isfinite().all() for tensor in load_file(state_of(out) / STATE_FILE).values())
    weights = load_file(copy / "model.safetensors")
    weights["trunk.norm_final.weight" if "trunk.norm_final.weight" in weights else "head.weight"][:] = 3e38  # finite, unlike their products
    save_file(weights, copy / "model.safetensors")
    outcome = outcome_of("distill", file, "--out", tmp_path / "other")
    assert_refused(outcome, "the loss is nan at update 0", code=1)
    assert {name: before[name] for name in before if name.startswith("training_state")} == {
        name: value for name, value in tree(state_of(out)).items() if name.startswith("training_state")}


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_shard_that_is_gone_is_one_line_whichever_process_misses_it(workers, request, tmp_path, data):
    """One worker is this process, two are on Ray. Batches of four: in update 2 the first half alone holds the last shard of the epoch; nobody may wait for the other."""
    run = request.getfixturevalue("cli" if workers == 1 else "outcome_of")
    folder = tmp_path / "data"
    shutil.copytree(data["mask"], folder)
    for seed in range(20):
        config = settings(folder, workers=workers)
        config["data"] |= {"group": 1}
        config["optim"] |= {"batch_size": 4, "seed": seed, "checkpoint_every": 1}
        layout = open_reader(DistillConfig.model_validate(config)).streams[0]._layout
        first, second = ([group[0] for group in layout(epoch)[0]] for epoch in (0, 1))
        if first[2] == 2 and second[0] != 2:  # of shards of 4, 4 and 2 rows
            break
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    shard = sorted((folder / "data").iterdir())[2]
    content = shard.read_bytes()
    out = tmp_path / "student"
    shard.unlink()
    assert_refused(run("distill", file, "--out", out), shard.name, "missing")
    assert not out.exists()
    assert step_of(out) == 2
    if workers == 1:
        shard.write_bytes(content[:50] + bytes([content[50] ^ 1]) + content[51:])
        assert_refused(run("distill", file, "--out", out), shard.name, "checksum")
        assert step_of(out) == 2


def brief(tmp_path: Path, data: Path) -> Path:
    config = settings(data)
    config["optim"] |= {"steps": 2}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_a_run_that_is_under_way_is_refused_with_its_process_named(tmp_path, data, cli, monkeypatch):
    monkeypatch.setattr(data_parallel, "LOCK_SECONDS", 1.0)
    out = tmp_path / "student"
    with open_store(str(state_of(out))).owned():
        assert_refused(cli("distill", brief(tmp_path, data["mask"]), "--out", out), "another run is writing there", f"process {os.getpid()}")
    assert not out.exists()


def test_text_that_is_not_there_is_one_line(tmp_path, data, cli):
    out = tmp_path / "student"
    outcome = cli("distill", brief(tmp_path, data["mask"]), "--out", out, "--real-weight", 1, "--corpus", "/nowhere.txt")
    assert_refused(outcome, "/nowhere.txt", "no such file")
    assert not out.exists()


def test_an_interrupt_while_real_text_is_read_ends_it_there(tmp_path, data, cli, monkeypatch):
    """Which may take long, and before the first update there is nothing to save."""
    def prepared(config, words, size, progress):
        progress("tokenising the corpus", 0, 2)
        os.kill(os.getpid(), signal.SIGINT)
        progress("tokenising the corpus", 1, 2)
        raise AssertionError("it went on")

    monkeypatch.setattr("tsdfm.pipeline.training.student_trainer.prepare", prepared)
    end = cli("distill", brief(tmp_path, data["mask"]), "--out", tmp_path / "student", "--real-weight", 1)
    assert end.code == 130, end.stderr
    assert "stopped before the training (tokenising the corpus)" in end.stderr
    assert "resume with: tsdfm-pipeline distill" in " ".join(end.stderr.split())


def test_the_run_of_another_config_is_refused_by_field(tmp_path, data, cli):
    file, out = brief(tmp_path, data["mask"]), tmp_path / "student"
    assert cli("distill", file, "--out", out).code == 0
    before = tree(out)
    assert_refused(cli("distill", file, "--out", out, "--lr", 0.5), "optim.lr (there 0.001, here 0.5)")
    assert tree(out) == before


def test_every_process_reads_the_commit_that_the_driver_found(tmp_path, data, monkeypatch, capsys):
    """A branch may move between two looks, so training processes are given the commit."""
    from tsdfm.jobs.distill import run as module
    from tsdfm.pipeline.storage.hub.store import HubStore

    commit = "3" * 40
    monkeypatch.setattr(HubStore, "_pin", lambda self, revision: commit)
    monkeypatch.setattr(HubStore, "read", lambda self, path: open_store(str(data["mask"])).read(path))
    seen: list[DistillConfig] = []

    def stop(group, line):
        seen.append(group.config)
        raise KeyboardInterrupt

    monkeypatch.setattr("tsdfm.jobs.crew.training.group.Group.run", stop)
    config = DistillConfig.model_validate({"data": {"paths": ["hf://datasets/team/runs@main", str(data["mask"])]}, "workers": 2})
    with pytest.raises(KeyboardInterrupt):
        module.distill(config, tmp_path / "student")
    assert seen[0].data.paths == [f"hf://datasets/team/runs@{commit}", str(data["mask"])]
    assert f"reading hf://datasets/team/runs@{commit}" in capsys.readouterr().err
