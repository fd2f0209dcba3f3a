"""`import-teacher` as a user meets it: a folder that `sample` opens, JSON, and every wrong input in one line."""

import json
import pickle

import pytest
import torch
from safetensors.torch import save, save_file

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
    assert_refused(cli("import-teacher", tmp_path / "nowhere", "--out", tmp_path / "mine"), "not a model folder")  # asked first


def test_a_checkpoint_of_the_hub_is_imported_by_name(hub, tmp_path, cli):
    """Duo as it is published: config.json, weights and no tokenizer; the commit is recorded, and nothing else is fetched."""
    words = tmp_path / "gpt2.json"
    words.write_text(gpt2_like(30).to_str())
    repo = hub.add("model", "somebody/duo")
    facts = {"model_type": "duo", "n_heads": 2, "model_length": 24, "vocab_size": IDS + 1}
    repo.refs["v1"] = repo.commit({"config.json": json.dumps(facts).encode(), "modeling.py": b"raise SystemExit", "big.bin": b"?",
                                   "model.safetensors": save({f"backbone.{name}": each for name, each in random_weights("mdlm", IDS + 1).items()})})
    outcome = cli("import-teacher", "hub:somebody/duo@v1", "--tokenizer", words, "--out", tmp_path / "teacher", "--json")
    assert outcome.code == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["layout"], report["commit"], report["config"]["source"]) == ("duo", repo.head, "uniform")
    assert json.loads((tmp_path / "teacher" / "training.json").read_text())["imported"]["commit"] == repo.head
    assert "assumed: the last of 288 rows is the [PAD]" in outcome.stderr
    assert not any(call.endswith(("modeling.py", "big.bin")) for call in hub.calls)
    assert cli("sample", "--model", tmp_path / "teacher", "--steps", 2, "-n", 1).code == 0


def test_of_several_files_one_must_be_named(hub, source, tmp_path, cli):
    file = (source / "checkpoint.pth").read_bytes()
    words = (source / FILE).read_bytes()
    hub.add("model", "somebody/fs").commit({"DFM_checkpoint.pth": file, "FSDFM_checkpoint.pth": file, FILE: words})
    hub.add("model", "somebody/card").commit({"README.md": b"soon"})
    hub.add("model", "somebody/gated", gated=True).commit({"model.safetensors": b""})
    hub.add("model", "somebody/pickled").commit({"pytorch_model.bin": pickle.dumps(print), FILE: words})
    out = ("--out", tmp_path / "out")
    for name, said in (("somebody/fs", "name one with --file"), ("somebody/card", "no file of weights"), ("somebody/gated", "gated"),
                       ("somebody/none", "no such repository"), ("somebody/fs@v3", "no such revision"), ("somebody/fs/x", "hub:USER/NAME"),
                       ("somebody/pickled", "nothing is unpickled")):
        assert_refused(cli("import-teacher", f"hub:{name}", *out), said)
    assert_refused(cli("import-teacher", "hub:somebody/fs", "--file", "none.pth", *out), "--file none.pth", "DFM_checkpoint.pth")
    assert_refused(cli("import-teacher", source / "checkpoint.pth", "--file", "checkpoint.pth", *out), "leave out --file")
    assert not (tmp_path / "out").exists()
    assert cli("import-teacher", "hub:somebody/fs", "--file", "DFM_checkpoint.pth", *out).code == 0
    hub.stop()
    assert_refused(cli("import-teacher", "hub:somebody/other", *out), "can't be reached", code=1)


def test_a_layout_that_nothing_tells_is_asked_for(source, tmp_path, cli):
    (source / "checkpoint.pth").unlink()
    save_file(random_weights("mdlm", IDS + 1), source / "model.safetensors")
    assert_refused(cli("import-teacher", source, "--out", tmp_path / "out"), "--layout mdlm or sdtt (mask source), or duo (uniform source)")
    assert_refused(cli("import-teacher", source, "--out", tmp_path / "out", "--layout", "duo", "--source", "mask"), "uniform source")
    assert_refused(cli("import-teacher", source, "--out", tmp_path / "out", "--layout", "duo", "--time-conditioning"), "always told")
