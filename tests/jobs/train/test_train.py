"""`pretrain` and `fit-compass`, from text to a dataset made with what they trained."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from tests.commands import running, wait_for
from tests.support import make_dataset, present, tree
from tsdfm.jobs.crew.training.desk import Desk
from tsdfm.jobs.train import run as module
from tsdfm.pipeline.models.folder import load, load_denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.training import fit_compass, pretrain

SUBJECTS = ["the cat", "a dog", "one bird", "my friend", "this river", "every child", "an old tree", "the night"]
VERBS = ["sees", "follows", "remembers", "covers", "likes", "carries", "leaves", "finds"]
SHAPE = {"hidden_size": 32, "n_blocks": 1, "n_heads": 2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    lines = [f"{a} {v} {b}, and then {b} {w} {a} again near place number {i}."
             for i, (a, v, b, w) in enumerate((a, v, b, w) for a in SUBJECTS for v in VERBS for b in SUBJECTS for w in VERBS[:2])]
    file.write_text("".join(json.dumps({"text": f"{line} {line}"}) + "\n" for line in lines))
    return file


@pytest.fixture(scope="module")
def configs(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("configs")
    optim = {"steps": 60, "batch_size": 16, "warmup": 5, "lr": 3e-3, "checkpoint_every": 20, "ema": 0.9}
    teacher = {"corpus": {"path": str(corpus)}, "vocab_size": 300, "length": 16, "shape": SHAPE, "cond_dim": 16, "optim": optim}
    compass = {"corpus": {"path": str(corpus), "part": "first"}, "shape": SHAPE, "rollouts": 64, "rollout_steps": 8, "optim": optim}
    for name, config in (("teacher", teacher), ("compass", compass)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_from_text_to_a_dataset(cli, configs, tmp_path, tiny_models):
    teacher = tmp_path / "teacher"
    outcome = cli("pretrain", configs / "teacher.yaml", "--out", teacher, "--json")
    assert outcome.code == 0, outcome.stderr
    facts = json.loads(outcome.stdout)
    assert facts["held_out_cross_entropy"] < np.log(300)  # better than a uniform guess
    assert facts["held_out_negative_elbo"] > 0
    assert any((tmp_path / "teacher.training" / "tensorboard").iterdir())
    folders = {}
    for kind in ("ar", "nce", "contrast"):
        folders[kind] = tmp_path / kind
        start = ["--start", folders["ar"], "--rollout-clocks", "spaced"] if kind == "contrast" else []
        outcome = cli("fit-compass", configs / "compass.yaml", "--kind", kind, *start, "--teacher", teacher, "--out", folders[kind], "--json")
        assert outcome.code == 0, outcome.stderr
        fitted = json.loads(outcome.stdout)
        if kind == "ar":
            assert fitted["held_out_perplexity"] < 300
        elif kind == "nce":
            assert len(fitted["held_out_auc"]) == 8
        else:
            assert fitted["teachers_nats"] < fitted["teachers_nats_before"]
            assert fitted["start"] == load(folders["ar"]).fingerprint
        manifest = make_dataset(tmp_path / f"out-{kind}", tiny_models, teacher=str(teacher), compass=str(folders[kind]))
        compass = present(manifest.identity.compass)
        assert compass.kind == kind
        assert compass.fingerprint == load(folders[kind]).fingerprint
    both = cli("fit-compass", configs / "compass.yaml", "--part", "second", "--teacher", teacher, "--out", tmp_path / "judge", "--json")
    assert both.code == 0
    assert load(tmp_path / "judge").fingerprint != load(folders["ar"]).fingerprint


def test_a_uniform_teacher_trains_with_the_generalized_kl(cli, configs, tmp_path):
    config = yaml.safe_load((configs / "teacher.yaml").read_text()) | {"source": "uniform", "objective": "generalized_kl"}
    file = tmp_path / "uniform.yaml"
    file.write_text(yaml.safe_dump(config))
    outcome = cli("pretrain", file, "--out", tmp_path / "teacher", "--json")
    assert outcome.code == 0, outcome.stderr
    assert load_denoiser(tmp_path / "teacher").network.config.mask_id is None
    assert cli("sample", "--model", tmp_path / "teacher", "--steps", 4, "-n", 2).code == 0


def test_an_interrupted_training_resumes_to_the_same_weights(cli, configs, tmp_path, monkeypatch):
    from tsdfm.pipeline.training.loop.trainer import Trainer

    assert cli("pretrain", configs / "teacher.yaml", "--out", tmp_path / "whole").code == 0
    update = Trainer.update

    def dies_at_30(self, loss_at):
        if self.step == 30:
            raise KeyboardInterrupt
        return update(self, loss_at)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", dies_at_30)
        assert cli("pretrain", configs / "teacher.yaml", "--out", tmp_path / "cut").code == 130
    assert not (tmp_path / "cut").exists()
    assert cli("pretrain", configs / "teacher.yaml", "--out", tmp_path / "cut").code == 0
    assert load(tmp_path / "cut").fingerprint == load(tmp_path / "whole").fingerprint


def test_training_into_the_folder_of_another_config_is_refused(cli, configs, tmp_path):
    out = tmp_path / "teacher"
    assert cli("pretrain", configs / "teacher.yaml", "--out", out).code == 0
    before = load(out).fingerprint
    outcome = cli("pretrain", configs / "teacher.yaml", "--out", out, "--seed", 5)
    assert outcome.code == 2
    assert "optim" in outcome.stderr.splitlines()[-1]
    assert load(out).fingerprint == before


@pytest.mark.parametrize("kind", ["teacher", "ar", "nce", "contrast"])
def test_what_is_finished_is_said_to_be_and_nothing_is_started(cli, configs, tmp_path, tiny_models, monkeypatch, kind):
    """By one worker or several, also without the training state; what is damaged, or asked for in another precision, is made anew."""
    out, few = tmp_path / "out", ["--updates", 2]
    command = (["pretrain", configs / "teacher.yaml", *few] if kind == "teacher" else
               ["fit-compass", configs / "compass.yaml", "--kind", kind, "--teacher", tiny_models.mask, *few])
    command += ["--start", tiny_models.ar] if kind == "contrast" else []
    first = cli(*command, "--out", out, "--json")
    assert first.code == 0, first.stderr
    shutil.rmtree(tmp_path / "out.training")
    before, started = tree(out), []

    def starts(label, loop, *rest):
        started.append(label)

    monkeypatch.setattr(module, "_here", starts)
    monkeypatch.setattr(module, "_in_a_group", starts)
    for more in ([], ["--workers", 2], ["--threads", 1, "--workers", 2]):
        again = cli(*command, "--out", out, "--json", *more)
        assert again.code == 0
        assert f"{out}: is finished" in " ".join(again.stderr.split())
        assert {**json.loads(again.stdout), "config": None} == {**json.loads(first.stdout), "config": None}
    assert (started, tree(out)) == ([], before)
    assert not (tmp_path / "out.training").exists()
    weights = out / "model.safetensors"
    content = weights.read_bytes()
    cases: list[tuple[str, list[object]]] = [("other precision", ["--half"]), ("other seed", ["--seed", 7]), ("other text", []), ("damaged", [])]
    for name, more in cases:
        if name == "other text":
            monkeypatch.setattr(fit_compass, "corpus_sha256", lambda *rest, **named: "0" * 64)
            monkeypatch.setattr(pretrain, "corpus_sha256", lambda *rest, **named: "0" * 64)
        if name == "damaged":
            weights.write_bytes(content[:-1])
        started.clear()
        cli(*command, "--out", out, *more)
        assert len(started) == 1, name
        weights.write_bytes(content)


def test_the_nce_encoder_starts_from_the_teachers_trunk(tiny_models):
    network = load(tiny_models.nce).network
    assert isinstance(network, NceEncoder)
    assert set(network.trunk.state_dict()) == set(load_denoiser(tiny_models.mask).network.trunk.state_dict())


# ------------------------------------------------------------------ on Ray

COMMAND = [sys.executable, "-c", "from tsdfm.jobs.cli import main; main()"]


def test_one_worker_needs_no_ray(configs, tmp_path):
    code = f"""
import sys
sys.argv = ["tsdfm-pipeline", "pretrain", {str(configs / "teacher.yaml")!r}, "--out", {str(tmp_path / "teacher")!r}, "--updates", "2"]
from tsdfm.jobs.cli import main
main()
assert "ray" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_workers_killed_and_resumed_train_the_teacher_of_one(configs, tmp_path, head):
    """By relative paths: processes on Ray stand elsewhere. Adam's steps blow up float errors, hence the tolerance."""
    shutil.copytree(configs, tmp_path / "configs")
    command = ["pretrain", "configs/teacher.yaml", "--updates", "200"]
    two = [*command, "--workers", "2", "--address", head.address, "--out", "models/teacher"]
    state = tmp_path / "models" / "teacher.training" / "training_state.json"
    with running(*two, cwd=tmp_path) as process:
        wait_for(lambda: state.exists() and json.loads(state.read_text())["step"] >= 40, process)
        process.kill()
    reports = []
    for line in (two, [*command, "--out", "alone"]):
        with running(*line, "--json", cwd=tmp_path) as process:
            stdout, stderr = process.communicate(timeout=250)
        assert process.returncode == 0, stderr
        assert "pretrain: 200/200" in stderr
        reports.append(json.loads(stdout))
    assert reports[0]["held_out_cross_entropy"] == pytest.approx(reports[1]["held_out_cross_entropy"], rel=1e-3)
    there, here = (load_denoiser(tmp_path / name).network.state_dict() for name in ("models/teacher", "alone"))
    for key, value in here.items():
        torch.testing.assert_close(there[key], value, rtol=0.05, atol=5e-3)


def test_a_fault_is_not_lost_among_what_other_processes_say():
    desk = Desk()
    desk.leave(ValueError("disk"))
    desk.stopping()
    desk.leave(None)
    assert not desk.post(5, {"loss": 1.0})
    news = desk.news()
    assert (news.begun, news.step, news.scalars, str(news.fault), news.stopped) == (True, 5, {"loss": 1.0}, "disk", True)
    desk.leave(ValueError("another"))
    desk.stop()
    assert str(desk.news().fault) == "disk"
    assert desk.stopping()
