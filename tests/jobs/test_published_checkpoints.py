"""Checkpoints and names that are at fault: one clear line each, exit code 2, no code of theirs run, no secret told, nothing written."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from tests.foreign import gpt2_like, masked_lm, random_weights
from tests.loopback_hub import TOKEN, LoopbackHub
from tests.support import assert_refused
from tsdfm.pipeline.text.vocabulary import FILE

IDS = 256 + 30 + 1


class Harm:
    """Pickled, it is a call that leaves a mark wherever it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@dataclass
class Scene:
    """A folder for a checkpoint, the Hub, and a file that any code that ran would leave."""

    folder: Path
    hub: LoopbackHub
    mark: Path
    monkeypatch: pytest.MonkeyPatch

    def mdlm(self, changes: Mapping[str, torch.Tensor | None] | None = None, rows: int = IDS + 1) -> list[object]:
        """A sound checkpoint of MDLM but for `changes` to its tensors: None takes one out."""
        weights = {**random_weights("mdlm", rows), **(changes or {})}
        save_file({name: each for name, each in weights.items() if each is not None}, self.folder / "model.safetensors")
        (self.folder / FILE).write_text(gpt2_like(30).to_str())
        return [self.folder, "--layout", "mdlm"]

    def beside(self, text: str | bytes | dict[str, object]) -> list[object]:
        """An MDLM whose config.json is this, with no layout named."""
        self.mdlm()
        data = json.dumps(text) if isinstance(text, dict) else text
        (self.folder / "config.json").write_bytes(data if isinstance(data, bytes) else data.encode())
        return [self.folder]

    def bert(self, **facts: object) -> list[object]:
        """A sound masked language model of transformers but for these fields of its config.json."""
        masked_lm(self.folder, "Bert")
        file = self.folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | facts))
        return [self.folder]

    def library(self, kind: str, **sizes: object) -> list[object]:
        """A tiny model of transformers that is no masked language model."""
        import transformers

        config = getattr(transformers, f"{kind}Config")(**sizes)
        getattr(transformers, {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForConditionalGeneration"))(config).save_pretrained(self.folder)
        (self.folder / FILE).write_text(gpt2_like(30).to_str())
        return [self.folder]

    def code(self) -> dict[str, object]:
        """What a config.json says to have code of its repository run."""
        (self.folder / "harm.py").write_text(f"open({str(self.mark)!r}, 'w')")
        return {"model_type": "harm", "auto_map": {"AutoConfig": "harm.Config", "AutoModelForMaskedLM": "harm.Model"}}

    def remote(self, files: dict[str, bytes] | None = None, **settings: bool) -> list[object]:
        """A repository of the Hub with these files, else with a sound MDLM."""
        self.mdlm()
        sound = {path.name: path.read_bytes() for path in self.folder.iterdir()}
        self.hub.add("model", "somebody/model", **settings).commit(sound if files is None else files)
        return ["hub:somebody/model", "--layout", "mdlm"]

    def named(self, name: str) -> list[object]:
        self.remote()
        return [name, "--layout", "mdlm"]

    def written(self, name: str, data: bytes) -> list[object]:
        """One file beside a tokenizer."""
        (self.folder / FILE).write_text(gpt2_like(30).to_str())
        (self.folder / name).write_bytes(data)
        return [self.folder]

    def without(self, name: str, arguments: list[object]) -> list[object]:
        (self.folder / name).unlink()
        return arguments

    def cut(self, name: str, keep: float, arguments: list[object]) -> list[object]:
        data = (self.folder / name).read_bytes()
        (self.folder / name).write_bytes(data[: int(len(data) * keep)])
        return arguments

    def logged_out(self, arguments: list[object]) -> list[object]:
        self.monkeypatch.delenv("HF_TOKEN")
        return arguments

    def expired(self, arguments: list[object]) -> list[object]:
        self.monkeypatch.setenv("HF_TOKEN", "hf_anotherSecret")
        return arguments


def torch_file(data: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def headless(scene: Scene) -> list[object]:
    arguments = scene.bert()
    weights = load_file(scene.folder / "model.safetensors")
    save_file({name: each for name, each in weights.items() if ".transform." not in name} | {"ballast": torch.zeros(4096)},
              scene.folder / "model.safetensors", {"format": "pt"})
    return arguments


def zip_of(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 64}
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": IDS}
FAULTS: dict[str, tuple[Callable[[Scene], list[object]], list[str]]] = {
    # tensors
    "a tensor of another shape": (lambda s: s.mdlm({"blocks.1.mlp.0.weight": torch.ones(3, 4)}), ["blocks.1.mlp.0.weight"]),
    "a missing tensor": (lambda s: s.mdlm({"blocks.1.attn_out.weight": None}), ["blocks.1.attn_out.weight"]),
    "a tensor too many": (lambda s: s.mdlm({"blocks.0.lora.weight": torch.ones(2)}), ["blocks.0.lora.weight"]),
    "a missing block": (lambda s: s.mdlm({name: None for name in random_weights("mdlm", 2) if name.startswith("blocks.0.")}), ["blocks.0"]),
    "a head of another vocabulary": (lambda s: s.mdlm({"output_layer.linear.weight": torch.ones(9, 16)}), ["output_layer.linear.weight"]),
    "whole numbers for weights": (lambda s: s.mdlm({"blocks.0.norm1.weight": torch.ones(16, dtype=torch.int64)}), ["blocks.0.norm1.weight"]),
    "weights that are not numbers": (lambda s: s.mdlm({"blocks.0.norm1.weight": torch.full((16,), torch.nan)}), ["blocks.0.norm1.weight", "finite"]),
    # files
    "safetensors that are cut": (lambda s: s.cut("model.safetensors", 0.5, s.mdlm()), ["model.safetensors", "not a safetensors file"]),
    "safetensors of nothing": (lambda s: s.cut("model.safetensors", 0, s.mdlm()), ["model.safetensors", "not a safetensors file"]),
    "safetensors whose header is no JSON": (lambda s: s.written("model.safetensors", b"\x08\0\0\0\0\0\0\0notjson!"), ["not a safetensors file"]),
    "a pickle with code": (lambda s: s.written("pytorch_model.bin", pickle.dumps(Harm(s.mark))), ["nothing is unpickled", "safetensors"]),
    "a torch file with code in it": (lambda s: s.written("model.ckpt", torch_file({"state_dict": random_weights("mdlm", IDS + 1), "harm": Harm(s.mark)})), [
        "nothing is unpickled"]),
    "a torch file that is cut": (lambda s: s.written("model.pth", torch_file(random_weights("mdlm", IDS + 1))[:-700]), ["model.pth"]),
    "an archive that is no torch file": (lambda s: s.written("model.pt", zip_of(a__data=b"x")), ["model.pt"]),
    "an empty folder": (lambda s: [s.folder], ["no file of weights", "nothing"]),
    "a folder of words": (lambda s: s.written("README.md", b"soon"), ["no file of weights", "README.md"]),
    "weights in several parts": (lambda s: s.written("model.safetensors.index.json", b"{}"), ["divided over several files"]),
    "two files of weights": (lambda s: [*s.written("a.ckpt", b""), *s.written("b.ckpt", b"")][:1], ["a.ckpt, b.ckpt", "--file"]),
    "a name of nothing": (lambda s: [s.folder / "none"], ["no such checkpoint"]),
    # config.json
    "a config that is no JSON": (lambda s: s.beside("{"), ["config.json"]),
    "a config that is a list": (lambda s: s.beside("[1]"), ["config.json"]),
    "a config that is no text": (lambda s: s.beside(b"\xff\xfe\0"), ["config.json"]),
    "a model type of nobody": (lambda s: s.beside({"model_type": "sedd"}), ["'sedd'", "can be imported"]),
    "a model type of another layout": (lambda s: [*s.beside({"model_type": "duo"}), "--layout", "mdlm"], ["'duo'", "--layout"]),
    "sizes that are no numbers": (lambda s: s.beside({"model_type": "mdlm", "n_heads": "two"}), ["config.json", "n_heads"]),
    "heads that don't divide the width": (lambda s: [*s.mdlm(), "--heads", "3"], ["heads"]),
    "a config that asks for code": (lambda s: s.bert(**s.code()), ["harm.Config", "auto_map", "no code of a repository is run"]),
    "code under the name of a known model": (lambda s: [*s.bert(**s.code() | {"model_type": "bert", "hidden_act": "harm"})], ["cannot open"]),
    "code in place of a layout": (lambda s: [*s.bert(**s.code()), "--layout", "masked-lm"], ["harm.Config", "no code of a repository is run"]),
    "code that a flag asks for": (lambda s: [*s.bert(**s.code()), "--trust-remote-code"], ["--trust-remote-code"]),
    # of transformers
    "a causal language model": (lambda s: s.library("GPT2", **GPT2), ["gpt2", "--compass", "--evaluator"]),
    "an encoder and a decoder": (lambda s: s.library("T5", **T5), ["t5", "encoder-decoder"]),
    "a decoder of BERT's": (lambda s: s.bert(is_decoder=True), ["is a decoder"]),
    "a masked language model without its head": (headless, ["its files lack", "head"]),
    "a masked language model of other sizes": (lambda s: s.bert(intermediate_size=32), ["lack", "intermediate"]),
    "a larger model than its files hold": (lambda s: s.bert(num_hidden_layers=99), ["larger model"]),
    "a masked language model that is pickled": (lambda s: [*s.bert(), s.written("pytorch_model.bin", pickle.dumps(Harm(s.mark))) and "--file",
                                                           "pytorch_model.bin"], ["cannot open"]),
    # tokenizers
    "no tokenizer": (lambda s: s.without(FILE, s.mdlm()), ["no tokenizer.json", "--tokenizer"]),
    "a tokenizer that is no JSON": (lambda s: s.cut(FILE, 0.5, s.mdlm()), ["tokenizer.json"]),
    "a tokenizer of another size": (lambda s: s.mdlm(rows=IDS - 40), ["vocabulary of 247", "--tokenizer"]),
    "a tokenizer of a much larger model": (lambda s: s.mdlm(rows=5000), ["vocabulary of 5000", "--tokenizer"]),
    "no tokenizer of a masked language model": (lambda s: s.without(FILE, s.bert()), ["tokenizer"]),
    # names
    "a name without a repository": (lambda s: s.named("hub:"), ["hub:USER/NAME"]),
    "a name with a blank": (lambda s: s.named("hub:somebody/mo del"), ["hub:USER/NAME"]),
    "a name with a line break": (lambda s: s.named("hub:somebody/mo\ndel"), ["hub:USER/NAME"]),
    "a name with odd characters": (lambda s: s.named("hub:somebody/m$d*l"), ["can't be a repository's name"]),
    "a name in another script": (lambda s: s.named("hub:somebody/модель"), ["can't be a repository's name"]),
    "a name that climbs": (lambda s: s.named("hub:../model"), ["can't be a repository's name"]),
    "a name of three parts": (lambda s: s.named("hub:a/b/c"), ["hub:USER/NAME"]),
    "a name that is too long": (lambda s: s.named(f"hub:somebody/{'m' * 200}"), ["can't be a repository's name"]),
    "a revision that is not there": (lambda s: s.named("hub:somebody/model@v9"), ["no such revision"]),
    "a commit that is not there": (lambda s: s.named(f"hub:somebody/model@{'0' * 40}"), ["no such revision"]),
    "a revision that climbs": (lambda s: s.named("hub:somebody/model@../../main"), ["revision"]),
    "a repository that is not there": (lambda s: s.named("hub:somebody/none"), ["no such repository"]),
    "a private repository without a login": (lambda s: s.logged_out(s.remote(private=True)), ["private", "HF_TOKEN"]),
    "a private repository of somebody else": (lambda s: s.remote(private=True), ["private"]),
    "a login that has expired": (lambda s: s.expired(s.remote()), ["HF_TOKEN", "expired"]),
    "a gated repository": (lambda s: s.remote(gated=True), ["gated", "HF_TOKEN"]),
    "a repository without weights": (lambda s: s.remote({"README.md": b"soon"}), ["no file of weights"]),
    "a repository without a tokenizer": (lambda s: s.remote({"model.safetensors": save(random_weights("mdlm", IDS + 1))}), ["no tokenizer.json"]),
    "a file that climbs out of a repository": (lambda s: [*s.remote(), "--file", "../../../etc/passwd"], ["has no such file"]),
    "a repository whose file climbs": (lambda s: s.remote({"../../escaped.safetensors": b"x", FILE: b"{}"}), ["escaped.safetensors"]),
    "a repository whose weights are cut": (lambda s: s.remote({"model.safetensors": save(random_weights("mdlm", IDS + 1))[:-9], FILE: gpt2_like(
        30).to_str().encode()}), ["not a safetensors file"]),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_checkpoint_at_fault_is_refused_in_one_line(name, tmp_path, cli, hub, monkeypatch):
    pytest.importorskip("transformers")
    build, words = FAULTS[name]
    scene = Scene(tmp_path / "source", hub, tmp_path / "mark", monkeypatch)
    scene.folder.mkdir()
    hub.tokens = {TOKEN: "team"}
    arguments = build(scene)
    outcome = cli("import-teacher", *arguments, "--out", tmp_path / "out")
    assert_refused(outcome, *words)
    assert len(outcome.stderr.splitlines()[-1]) < 700
    assert not {TOKEN, "hf_anotherSecret"} & set(outcome.stderr.split())
    assert "hf_a" not in outcome.stderr
    assert not scene.mark.exists(), "code of the checkpoint ran"
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("escaped*"))


MODELS: dict[str, tuple[Callable[[Scene], object], list[str]]] = {
    "an empty folder": (lambda s: s.folder, ["config.json"]),
    "no folder": (lambda s: s.folder / "none", ["no such model folder"]),
    "a file": (lambda s: s.written("weights.bin", b"x") and s.folder / "weights.bin", ["no such model folder"]),
    "a masked language model that was not imported": (lambda s: s.bert()[0], ["import-teacher"]),
    "a causal language model": (lambda s: s.library("GPT2", **GPT2)[0], ["judge or a compass"]),
    "a model that asks for code": (lambda s: s.bert(**s.code())[0], ["harm", "no code of a repository is run"]),
    "a repository that was not imported": (lambda s: s.remote()[0], ["config.json"]),
    "a repository that is gated": (lambda s: s.remote(gated=True)[0], ["gated", "HF_TOKEN"]),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_at_fault_is_refused_wherever_it_is_named(name, tmp_path, cli, hub, monkeypatch):
    pytest.importorskip("transformers")
    build, words = MODELS[name]
    scene = Scene(tmp_path / "source", hub, tmp_path / "mark", monkeypatch)
    scene.folder.mkdir()
    model = build(scene)
    for command in (["sample", "--model", model], ["evaluate", "--model", model, "--steps", 1, "-n", 2]):
        assert_refused(cli(*command), *words)
    assert not scene.mark.exists()


JUDGES: dict[str, tuple[Callable[[Scene], object], list[str]]] = {
    "one that asks for code": (lambda s: s.bert(**s.code())[0], ["harm.Config", "no code of a repository is run"]),
    "one of other sizes": (lambda s: resized(s.library("GPT2", **GPT2 | {"n_inner": 32})[0], n_inner=16), ["lack", "mlp.c_fc"]),
    "one without a tokenizer": (lambda s: s.without(FILE, s.library("GPT2", **GPT2))[0], ["tokenizer"]),
    "one whose weights are cut": (lambda s: s.cut("model.safetensors", 0.9, s.library("GPT2", **GPT2))[0], ["model.safetensors"]),
    "one of two parts": (lambda s: s.library("T5", **T5)[0], ["judge", "transformers cannot open"]),
}


def resized(folder: object, **facts: object) -> object:
    file = Path(str(folder)) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | facts))
    return folder


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_at_fault_is_refused(name, tmp_path, cli, hub, monkeypatch):
    pytest.importorskip("transformers")
    build, words = JUDGES[name]
    scene = Scene(tmp_path / "source", hub, tmp_path / "mark", monkeypatch)
    scene.folder.mkdir()
    assert_refused(cli("evaluate", "--evaluator", build(scene), "--steps", 1, "-n", 2, "--no-memorisation"), *words)
    assert not scene.mark.exists()
