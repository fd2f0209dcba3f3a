"""Malformed inputs: one clear line, the right exit code, and OUT as it was."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import assert_refused, copy_dataset, make_dataset, tiny_config, tree
from tsdfm.schemas.base import InputError

CONFIG_FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown field": ({"trajectoris": 3}, ["trajectoris", "no such field"]),
    "a yes for a number": ({"trajectories": True}, ["trajectories", "valid integer, not True"]),
    "no UTF-8": ({"teacher": "t\udce9"}, ["t\\udce9", "not UTF-8"]),
    "half a character": ({"prompt_field": "\ud800"}, ["\\ud800", "not UTF-8"]),
    "a NUL": ({"compass": "A\0B"}, ["compass", "NUL"]),
    "unknown nested field": ({"rollout": {"stepz": 3}}, ["rollout.stepz"]),
    "no steps": ({"rollout": {"steps": 0}}, ["rollout.steps", "greater than or equal to 1"]),
    "steps of words": ({"rollout": {"steps": "many"}}, ["rollout.steps", "many"]),
    "no candidates": ({"shaping": {"candidates": 0}}, ["shaping.candidates"]),
    "too many candidates": ({"shaping": {"candidates": 128}}, ["shaping.candidates", "127"]),
    "tau beyond one": ({"shaping": {"tau": 1.5}}, ["shaping.tau"]),
    "negative beta": ({"shaping": {"select": "resample", "beta": -1}}, ["shaping.beta"]),
    "unknown selection": ({"shaping": {"select": "argmax"}}, ["shaping.select", "argmin"]),
    "zero temperature": ({"rollout": {"temperature": 0}}, ["rollout.temperature"]),
    "no trajectories": ({"trajectories": 0}, ["trajectories"]),
    "negative seed": ({"rollout": {"seed": -1}}, ["rollout.seed"]),
    "unknown solver": ({"rollout": {"solver": "heun"}}, ["rollout.solver", "euler"]),
    "shaped without compass": ({"compass": "none"}, ["needs a compass", "blind"]),
    "rollout is a list": ({"rollout": [1]}, ["rollout"]),
    "length beyond the teacher's": ({"rollout": {"length": 4096}, "overlap": 4096}, ["overlap: 4096", "leave nothing to write"]),
    "top-k beyond the vocabulary": ({"rollout": {"top_k": 1000}}, ["top_k", "vocabulary"]),
    "missing teacher": ({"teacher": "/nowhere/teacher"}, ["/nowhere/teacher", "no such model folder"]),
    "missing compass": ({"compass": "/nowhere/compass"}, ["/nowhere/compass", "no such model folder"]),
    "source of another teacher": ({"source": "uniform"}, ["mask", "uniform"]),
    "unknown filesystem": ({"out": "quux://bucket/out"}, ["quux://bucket/out", "no such filesystem"]),
    "address without port": ({"address": "somewhere"}, ["somewhere", "not a Ray address"]),
    "nobody listens": ({"address": "127.0.0.1:1"}, ["127.0.0.1:1", "nobody listens"]),
    "no Ray client listens": ({"address": "ray://127.0.0.1:1"}, ["nobody listens", "ray start --head"]),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_a_faulty_config_is_refused_by_field(name, cli, tmp_path, tiny_models):
    fault, words = CONFIG_FAULTS[name]
    out = tmp_path / "out"
    config = tiny_config(out, tiny_models)
    for key, value in fault.items():
        config[key] = config[key] | value if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert_refused(cli("generate", file), *words)
    assert not out.exists()


@pytest.mark.parametrize(("text", "words"), [
    ("rollout: {steps: [", ["config.yaml:", "not YAML"]),
    ("- 1\n- 2\n", ["found list"]),
    ("just words", ["found str"]),
    ("\x00", ["config.yaml"]),
])
def test_a_file_that_is_no_config_is_refused(text, words, cli, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert_refused(cli("generate", file), *words)


def test_flags_are_checked_like_fields(cli, tmp_path):
    assert_refused(cli("generate", tmp_path / "absent.yaml"), "absent.yaml", "no such config file")
    assert_refused(cli("generate", "--steps", 0, "--out", tmp_path / "o"), "rollout.steps")
    assert_refused(cli("generate", "--steps", "x"), "--steps", "x")
    assert_refused(cli("generate", "--select", "best"), "--select")
    assert_refused(cli("generate", "--no-such-flag"), "--no-such-flag")
    assert_refused(cli("no-such-command"), "no-such-command")
    assert_refused(cli("sample", "--steps", 0), "steps")
    assert_refused(cli("sample", "--model", "/nowhere"), "/nowhere")
    assert_refused(cli("pretrain", "--out", tmp_path / "t", "--corpus", "/nowhere.txt"), "/nowhere.txt", "no such file")
    assert_refused(cli("fit-compass", "--out", tmp_path / "c", "--part", "third"), "--part")


def _teacher_faults(folder: Path, models) -> dict[str, tuple[Callable[[], object], list[str]]]:
    weights, config = folder / "model.safetensors", folder / "config.json"
    foreign = models.foreign
    return {
        "truncated weights": (lambda: weights.write_bytes(weights.read_bytes()[:-100]), ["model.safetensors", "not a safetensors file"]),
        "empty weights": (lambda: weights.write_bytes(b""), ["model.safetensors"]),
        "no weights": (lambda: weights.unlink(), ["model.safetensors"]),
        "weights of another shape": (lambda: shutil.copy(foreign / "model.safetensors", weights), ["tensor", "don't belong together"]),
        "tokenizer of another vocabulary": (lambda: shutil.copy(foreign / "tokenizer.json", folder), ["vocab_size", "tokenizer"]),
        "config is no JSON": (lambda: config.write_text("{"), ["config.json"]),
        "config of another kind": (lambda: config.write_text('{"kind": "gan"}'), ["config.json", "kind"]),
        "config with an odd width": (lambda: _edit(config, hidden_size=33), ["hidden_size", "multiple"]),
        "mask outside the vocabulary": (lambda: _edit(config, mask_id=5000), ["mask_id", "outside"]),
        "a pickle in place of weights": (lambda: (weights.unlink(), (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")), ["model.safetensors"]),
        "tokenizer is no JSON": (lambda: (folder / "tokenizer.json").write_text("nope"), ["tokenizer.json"]),
    }


def _edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("name", _teacher_faults(Path("x"), type("M", (), {"foreign": Path("x")})))
def test_a_faulty_teacher_is_refused(name, cli, tmp_path, tiny_models):
    folder = tmp_path / "teacher"
    shutil.copytree(tiny_models.mask, folder)
    spoil, words = _teacher_faults(folder, tiny_models)[name]
    spoil()
    out = tmp_path / "out"
    assert_refused(cli("generate", "--teacher", folder, "--compass", tiny_models.ar, "--out", out), *words)
    assert not out.exists()


def test_models_that_do_not_fit_together_are_refused(cli, tmp_path, tiny_models):
    out = ("--out", tmp_path / "out")
    assert_refused(cli("generate", "--teacher", tiny_models.foreign, "--compass", tiny_models.ar, *out), "tokenizer is not the teacher's")
    assert_refused(cli("generate", "--teacher", tiny_models.ar, *out), "holds a causal model")
    assert_refused(cli("fit-compass", "--teacher", tiny_models.ar, "--workers", 2, *out), "holds a causal model")
    assert_refused(cli("generate", "--teacher", tiny_models.mask, "--compass", tiny_models.mask, *out), "holds a denoiser")
    assert_refused(cli("generate", "--teacher", tiny_models.uniform, "--compass", tiny_models.nce, *out), "source")
    assert list(tmp_path.iterdir()) == []


def test_an_out_that_cannot_be_used_is_refused_and_left_alone(cli, tmp_path, tiny_models):
    base = ("generate", "--teacher", tiny_models.mask, "--compass", tiny_models.ar)
    assert_refused(cli(*base), "--out")
    file = tmp_path / "file"
    file.write_text("precious")
    assert_refused(cli(*base, "--out", file), str(file))
    assert file.read_text() == "precious"
    assert_refused(cli(*base, "--out", "/proc/tsdfm"), "give a folder you can write to")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("precious")
    assert_refused(cli(*base, "--out", foreign), "holds files and no dataset", "thesis.tex")
    assert tree(foreign).keys() == {"thesis.tex"}


def test_what_is_there_is_lost_to_no_other_command(cli, tmp_path, tiny_models):
    """Story: `inspect OUT --html OUT/manifest.json` took the dataset's manifest, and `evaluate --out OUT` left its results among shards."""
    out = tmp_path / "out"
    copy_dataset(out, tiny_models)
    before = tree(out)
    sampling = ("--model", tiny_models.mask, "--steps", 1, "--number", 2, "--evaluator", tiny_models.ar, "--no-reference", "--out", out)
    assert_refused(cli("inspect", out, "--html", out / "manifest.json"), "manifest.json", "is no page", "would be lost")
    assert_refused(cli("evaluate", *sampling), "holds files and no evaluation", "README.md, data, manifest.json")
    assert_refused(cli("evaluate", *sampling, "--plan"), "holds files and no evaluation")
    assert_refused(cli("demo", "--out", tiny_models.mask), "holds files and no demo", "config.json")
    assert_refused(cli("import-teacher", tiny_models.mask, "--out", out), "not a model folder")
    assert_refused(cli("evaluate", *sampling[:-1], tmp_path / "new", "--plan", "--save-rates", out / "manifest.json"), "is no file of rates")
    assert tree(out) == before
    for _ in range(2):  # a page is written over
        assert cli("inspect", out, "--html", tmp_path / "page.html").code == 0


def test_another_config_in_the_same_out_is_refused_with_the_fields_named(cli, tmp_path, tiny_models):
    out = tmp_path / "out"
    copy_dataset(out, tiny_models)
    before = tree(out)
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_config(out, tiny_models)))
    outcome = cli("generate", file, "--seed", 7, "--tau", 0.5)
    assert_refused(outcome, "rollout.seed (there 0, here 7)", "shaping.tau (there 0.0, here 0.5)")
    assert tree(out) == before


def test_an_out_in_use_is_refused_with_the_owner_named(cli, tmp_path, tiny_models):
    import os

    from tsdfm.pipeline.storage.open_store import open_store

    out = tmp_path / "out"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(tiny_config(out, tiny_models)))
    with open_store(str(out)).owned():
        assert_refused(cli("generate", file), "another run is writing there", f"process {os.getpid()}")
    assert tree(out) == {}


def _shard(out: Path, index: int) -> Path:
    return sorted((out / "data").iterdir())[index]


def _swap(out: Path) -> None:
    first, second = _shard(out, 0), _shard(out, 1)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def _flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x40
    file.write_bytes(bytes(data))


def _manifest(out: Path, change) -> None:
    file = out / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


DATASET_FAULTS = {
    "truncated shard": (lambda out: _shard(out, 0).write_bytes(_shard(out, 0).read_bytes()[:-50]), ["train-00000-of-00003", "bytes, the manifest says"]),
    "flipped bit": (lambda out: _flip(_shard(out, 1)), ["train-00001-of-00003", "checksum"]),
    "swapped shards": (_swap, ["train-00000-of-00003", "train-00001-of-00003"]),
    "missing shard": (lambda out: _shard(out, 2).unlink(), ["train-00002-of-00003", "missing"]),
    "empty shard": (lambda out: _shard(out, 0).write_bytes(b""), ["train-00000-of-00003"]),
    "stray file among the shards": (lambda out: (out / "data" / "train-x.parquet").write_bytes(b"x"), ["train-x.parquet", "not part"]),
    "manifest is no JSON": (lambda out: (out / "manifest.json").write_text("{"), ["manifest.json"]),
    "manifest of a later format": (lambda out: _manifest(out, lambda m: m.update(format_version=3, columns=[])), ["format_version 3 is unknown", "update tsdfm-pipeline"]),
    "manifest of no format": (lambda out: _manifest(out, lambda m: m.update(format_version=[1])), ["format_version [1] is unknown"]),
    "manifest of another format": (lambda out: _manifest(out, lambda m: m.update(format_version=2)), ["format_version is 2", "of version 1"]),
    "manifest with an unknown field": (lambda out: _manifest(out, lambda m: m.update(extra=1)), ["extra"]),
    "path that leaves the dataset": (lambda out: _manifest(out, lambda m: m["shards"][0].update(path="../../etc/passwd")), ["leaves the dataset"]),
    "absolute path": (lambda out: _manifest(out, lambda m: m["shards"][0].update(path="/etc/passwd")), ["leaves the dataset"]),
    "rows that do not add up": (lambda out: _manifest(out, lambda m: m["totals"].update(rows=7)), ["totals.rows"]),
    "checksum of another length": (lambda out: _manifest(out, lambda m: m["shards"][0].update(sha256="abc")), ["sha256"]),
    "no manifest": (lambda out: (out / "manifest.json").unlink(), ["no manifest.json"]),
    "tokenizer of another model": (lambda out: (out / "tokenizer.json").write_text("{}"), ["tokenizer.json"]),
    "no card": (lambda out: (out / "README.md").unlink(), ["README.md", "missing"]),
}


@pytest.mark.parametrize("name", DATASET_FAULTS)
def test_verify_names_the_fault_and_touches_nothing(name, cli, tmp_path, tiny_models):
    out = tmp_path / "out"
    copy_dataset(out, tiny_models)
    assert cli("verify", out).code == 0
    spoil, words = DATASET_FAULTS[name]
    spoil(out)
    before = tree(out)
    outcome = cli("verify", out)
    assert_refused(outcome, code=2 if name == "no manifest" else 1)
    for word in words:
        assert word in outcome.stderr
    assert tree(out) == before


def test_verify_and_inspect_of_nothing(cli, tmp_path):
    for command in ("verify", "inspect"):
        assert_refused(cli(command, tmp_path / "absent"), "no dataset there")
        assert_refused(cli(command, tmp_path), "no dataset there")
        assert_refused(cli(command), "OUT")


def test_an_unfinished_dataset_is_named_as_such(cli, tmp_path, tiny_models):
    out = tmp_path / "out"
    manifest = copy_dataset(out, tiny_models)
    (out / "manifest.json").unlink()
    (out / ".run.json").write_text(manifest.identity.model_dump_json())
    assert_refused(cli("verify", out), "unfinished", "generate")


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_keeps_finished_shards(cli, tmp_path, tiny_models):
    small = tmp_path / "small"
    small.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", small], check=False, capture_output=True)
    if mount.returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        out = small / "out"
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(tiny_config(out, tiny_models) | {"trajectories": 40, "workers": 1}))
        outcome = cli("generate", file)
        assert_refused(outcome, "disk is full", "resume", code=1)
        assert not list(out.rglob(".*.tmp"))
        assert not (out / "manifest.json").exists()
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("words", [("verify", "t\udce9"), ("inspect", "t\udce9"), ("publish", "t\udce9", "--repo", "a/b"),
                                   ("generate", "--teacher", "t\udce9"), ("sample", "--prompt", "t\udce9"), ("generate", "t\udce9.yaml")])
def test_a_name_that_is_not_utf_8_is_refused_before_anything_else(cli, words):
    """No record could be written of it: that was found out once all shards were made."""
    assert_refused(cli(*words), "t\\udce9", "not UTF-8")


def test_a_model_below_a_folder_that_is_not_utf_8(cli, tmp_path, tiny_models, monkeypatch):
    """Its absolute path stands in records."""
    here = tmp_path / "caf\udce9"
    here.mkdir()
    (here / "teacher").symlink_to(tiny_models.mask)
    monkeypatch.chdir(here)
    assert_refused(cli("generate", "--teacher", "teacher", "--compass", tiny_models.ar, "--out", tmp_path / "out"), "caf\\udce9", "not UTF-8")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="not UTF-8"):
        make_dataset(tmp_path / "out", tiny_models, teacher="teacher")
    assert not (tmp_path / "out").exists()


def test_json_of_a_name_that_is_not_utf_8_is_utf_8(cli, tmp_path, tiny_models):
    copy_dataset(tmp_path / "out", tiny_models)
    (tmp_path / "out" / "data" / "caf\udce9").touch()
    outcome = cli("verify", tmp_path / "out", "--json")
    assert outcome.stdout.isascii()
    assert json.loads(outcome.stdout)["faults"][0]["path"] == "data/caf\udce9"
