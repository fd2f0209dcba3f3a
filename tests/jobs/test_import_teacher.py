"""`import-teacher` as a user meets it: a folder that `sample` opens, JSON, and every wrong input in one line."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.foreign import gpt2_like, random_weights
from tests.support import assert_refused, tree
from tsdfm.pipeline.models import folder as checkpoint
from tsdfm.pipeline.text.vocabulary import FILE

IDS = 256 + 30 + 1


@pytest.fixture
def source(tmp_path):
    """A folder with a checkpoint and its tokenizer."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / FILE).write_text(gpt2_like(30).to_str())
    torch.save({"student_model": random_weights("fs-dfm", IDS, student=True), "teacher_model": random_weights("fs-dfm", IDS)},
               folder / "checkpoint.pth")
    return folder


def test_a_teacher_is_imported_and_sampled(source, tmp_path, cli):
    outcome = cli("import-teacher", source, "--weights", "teacher_model", "--length", 12, "--out", tmp_path / "teacher", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    opened = checkpoint.load(tmp_path / "teacher")
    assert report["fingerprint"] == opened.fingerprint
    assert (report["layout"], report["weights"], report["others"]) == ("fs-dfm", "teacher_model", ["student_model"])
    assert report["config"]["source"] == "uniform"
    facts = json.loads((tmp_path / "teacher" / "training.json").read_text())["imported"]
    assert facts["layout"] == "fs-dfm"
    texts = json.loads(cli("sample", "--model", tmp_path / "teacher", "--steps", 4, "-n", 2, "--json").stdout)["texts"]
    assert len(texts) == 2


def test_the_student_is_said_to_be_taken(source, tmp_path, cli):
    outcome = cli("import-teacher", source, "--out", tmp_path / "student", "--half")
    assert outcome.code == 0
    assert "student_model (also there: teacher_model)" in outcome.stderr
    assert cli("sample", "--model", tmp_path / "student", "--steps", 2, "-n", 1, "--length", 8).code == 0


def test_importing_twice_gives_the_same_bytes(source, tmp_path, cli):
    for name in ("one", "two"):
        assert cli("import-teacher", source, "--out", tmp_path / name).code == 0
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_wrong_input_is_one_line_and_writes_nothing(source, tmp_path, cli):
    out = tmp_path / "out"
    assert_refused(cli("import-teacher", tmp_path / "none", "--out", out), "no such checkpoint")
    assert_refused(cli("import-teacher", source, "--out", out, "--layout", "mdlm"), "fs-dfm")
    assert_refused(cli("import-teacher", source, "--out", out, "--layout", "mdlm", "--source", "uniform"), "mask source")
    assert_refused(cli("import-teacher", source, "--out", out, "--kappa-exponent", 0), "kappa_exponent")
    assert_refused(cli("import-teacher", source, "--out", out, "--tokenizer", tmp_path / "none"), "no such tokenizer")
    save_file({"wte.weight": torch.ones(2, 2)}, tmp_path / "other.safetensors")
    assert_refused(cli("import-teacher", tmp_path / "other.safetensors", "--out", out), "no weights of a known layout", "wte.weight")
    assert not out.exists()


def test_a_folder_that_is_no_model_is_kept(source, tmp_path, cli):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert_refused(cli("import-teacher", source, "--out", tmp_path / "mine"), "not a model folder")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
