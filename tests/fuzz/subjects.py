"""What is fuzzed: for each subject sound files, a way to spoil a copy of them, and the commands that read it.

A subject's `prepare` makes the sound files once; `spoil` changes a copy; `runs` reads it. All but what stands in `writes` must be
the same bytes afterwards.
"""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
import zstandard

from tests.foreign import random_weights
from tests.fuzz.mutate import (
    changed_bytes,
    changed_document,
    changed_footer,
    changed_json,
    changed_safetensors,
    changed_table,
    changed_yaml,
    changed_zip,
    parquet,
)
from tests.fuzz.outcome import Run, command, library
from tests.support import TinyModels, make_dataset, make_models, tiny_config, write_corpus
from tsdfm.pipeline import batches, open_dataset
from tsdfm.pipeline.dataset.manifest import digest
from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.evaluation.sample_cache import SampleCache
from tsdfm.pipeline.evaluation.samples import Samples, summarise
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.flow.opening import open_models
from tsdfm.pipeline.training.distill import check
from tsdfm.schemas.distill import DataConfig, DistillConfig
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.terms import Objective

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Subject:
    """One kind of input."""

    prepare: Callable[[Path, TinyModels], None]
    spoil: Callable[[Path, random.Random], None]
    runs: Callable[[Path, random.Random, TinyModels], Run]
    writes: tuple[str, ...] = ()  # names below the folder that a run may make, or write anew


def _change(file: Path, change: Callable[[bytes, random.Random], bytes], rng: random.Random) -> None:
    file.write_bytes(change(file.read_bytes(), rng))


# Datasets


def _dataset(folder: Path, models: TinyModels) -> None:
    make_dataset(folder / "out", models, trajectories=4, shard_size=2, rollout={"steps": 4, "batch_size": 2, "top_k": 2}, shaping={"candidates": 2})


def _read_dataset(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    out, name = folder / "out", str(folder / "out")
    match rng.choice(["verify", "verify", "inspect", "trajectory", "counterfactual", "html", "rows", "batches", "check"]):
        case "verify":
            return command("verify", out)
        case "inspect":
            return command("inspect", out, *rng.choice([[], ["--json"], ["--arm", "blind"]]))
        case "trajectory":
            return command("inspect", out, "--trajectory", rng.choice([0, 3]))
        case "counterfactual":
            return command("inspect", out, "--counterfactual")
        case "html":
            return command("inspect", out, "--html", folder / "page.html")
        case "rows":
            return library(f"open_dataset({name}).rows()", lambda: [(row.text, row.state_after(1, row.mask_id)) for row in open_dataset(name).rows()])
        case "batches":
            objective: Objective = rng.choice(get_args(Objective))
            data = DataConfig(paths=[name], best=rng.choice([1.0, 0.5]))
            return library(f"batches({name}, {objective})", lambda: list(batches(data, objective, updates=2, batch_size=4)))
        case _:
            return library(f"check(DistillConfig of {name})", lambda: check(DistillConfig.model_validate(
                {"data": {"paths": [name]}, "budgets": {2: 1}, "init": str(models.mask)}), folder / "student"))


def _commit(out: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest whose checksums and sums are those of the files that are there."""
    records = [record for record in manifest["shards"] if (out / record["path"]).is_file()]
    for record in records:
        data = (out / record["path"]).read_bytes()
        record |= {"bytes": max(1, len(data)), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["totals"]["bytes"] = sum(record["bytes"] for record in records)
    (out / "manifest.json").write_text(json.dumps(manifest))


def _manifest_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "manifest.json").read_text())
    return found


def _spoil_shard(folder: Path, rng: random.Random) -> None:
    out = folder / "out"
    manifest, kind = _manifest_of(out), rng.random()
    file = out / rng.choice(manifest["shards"])["path"]
    if kind < 0.25:
        _change(file, changed_bytes, rng)
    elif kind < 0.5:
        _change(file, changed_footer, rng)
    else:
        file.write_bytes(parquet(changed_table(pq.read_table(file), rng), rng))
    if rng.random() < 0.8:
        _commit(out, manifest)


def _spoil_manifest(folder: Path, rng: random.Random) -> None:
    out = folder / "out"
    kind = rng.random()
    if kind < 0.5:
        _change(out / "manifest.json", changed_json, rng)
        return
    # An identity that is another, and everywhere alike: in the manifest and in the shards.
    manifest = _manifest_of(out)
    part = rng.choice([("rollout",), ("shaping",), ("teacher",), ()])
    place = manifest["identity"]
    for name in part:
        place = place[name]
    changed = changed_document(place, rng)
    if isinstance(changed, dict):
        place.clear()
        place.update(changed)
    try:
        identity = Identity.model_validate(manifest["identity"])
        owner = digest(identity)
        manifest["time_grid"], manifest["shaped_steps"] = list(identity.rollout.times), list(identity.grid.shaped_steps)
        manifest["totals"]["tokens"] = manifest["totals"]["rows"] * (identity.rollout.length or 0)
    except (ValueError, MemoryError, OverflowError, RecursionError):
        owner = "0" * 64
    for record in manifest["shards"]:
        table = pq.read_table(out / record["path"])
        pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"tsdfm.identity": owner.encode()}), out / record["path"])
    _commit(out, manifest)


def _spoil_dataset_tokenizer(folder: Path, rng: random.Random) -> None:
    out = folder / "out"
    _change(out / "tokenizer.json", changed_json, rng)
    if rng.random() < 0.8:
        manifest = _manifest_of(out)
        manifest["identity"]["tokenizer"] = hashlib.sha256((out / "tokenizer.json").read_bytes()).hexdigest()
        _commit(out, manifest)


def _spoil_card(folder: Path, rng: random.Random) -> None:
    _change(folder / "out" / "README.md", changed_bytes, rng)


# Datasets that are not finished


def _unfinished(folder: Path, models: TinyModels) -> None:
    _dataset(folder, models)
    out = folder / "out"
    manifest = _manifest_of(out)
    (out / ".receipts").mkdir()
    for record in manifest["shards"]:
        events = len(pq.read_table(out / record["path"]).column("event_step").combine_chunks().flatten())
        (out / ".receipts" / f"{Path(record['path']).name}.json").write_text(json.dumps({"record": record, "events": events}))
    (out / ".run.json").write_text(json.dumps(manifest["identity"]))
    for name in ("manifest.json", "README.md", "tokenizer.json"):
        (out / name).unlink()


def _spoil_unfinished(folder: Path, rng: random.Random) -> None:
    out = folder / "out"
    name = rng.choice([".run.json", ".receipts", ".receipts", "data", ".lock"])
    (out / ".lock").write_text('{"pid": 1, "host": "x", "started": "y"}')
    place = out / name
    file = place if place.is_file() else rng.choice(sorted(place.iterdir()))
    _change(file, changed_bytes if name == "data" else changed_json, rng)


def _resume(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    config = GenerateConfig.model_validate(tiny_config(folder / "out", models) | {
        "trajectories": 4, "shard_size": 2, "rollout": {"steps": 4, "batch_size": 2, "top_k": 2}, "shaping": {"candidates": 2}})
    return library(f"generate_dataset into {folder / 'out'}", lambda: generate_dataset(config, maker=InThisProcess(CPU)))


# Models and tokenizers


def _models(folder: Path, models: TinyModels) -> None:
    make_models(folder)


MODELS = ("mask", "uniform", "ar", "nce")


def _spoil_model(folder: Path, rng: random.Random) -> None:
    name = rng.choice(MODELS)
    file, change = rng.choice([("config.json", changed_json), ("model.safetensors", changed_safetensors), ("model.safetensors", changed_safetensors),
                               ("tokenizer.json", changed_json)])
    _change(folder / name / file, change, rng)
    (folder / "spoiled").write_text(name)


def _open_model(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    name = (folder / "spoiled").read_text()
    if name in ("mask", "uniform"):
        return command("sample", "--model", folder / name, "--steps", 2, "-n", 1)
    if name == "ar" and rng.random() < 0.4:
        judge = str(folder / name)
        return library(f"open_judge({judge})", lambda: open_judge(judge, CPU))
    config = GenerateConfig(teacher=str(models.mask), compass=str(folder / name))
    return library(f"open_models of compass {folder / name}", lambda: open_models(config, CPU))


def _spoil_tokenizer(folder: Path, rng: random.Random) -> None:
    _change(folder / "mask" / "tokenizer.json", changed_json, rng)


def _use_tokenizer(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    file = folder / "mask" / "tokenizer.json"
    if rng.random() < 0.5:
        return command("sample", "--model", folder / "mask", "--steps", 2, "-n", 1)
    return _pretrain(folder, folder / "text.txt", tokenizer=file)


def _tokenizers(folder: Path, models: TinyModels) -> None:
    make_models(folder)
    write_corpus(folder / "text.txt", 120)


# Trainings and text

SMALL = {"shape": {"hidden_size": 8, "n_blocks": 1, "n_heads": 1}, "cond_dim": 8, "length": 4,
         "optim": {"steps": 2, "batch_size": 2, "threads": 1, "warmup": 1}}


def _pretrain(folder: Path, corpus: Path, **changes: object) -> Run:
    file = folder / "pretrain.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "corpus": {"path": str(corpus)}, **{name: str(value) for name, value in changes.items()}}))
    return command("pretrain", file, "--out", folder / "teacher")


def _training(folder: Path, models: TinyModels) -> None:
    write_corpus(folder / "text.txt", 120)
    assert _pretrain(folder, folder / "text.txt", tokenizer=models.mask / "tokenizer.json").outcome.code == 0


def _spoil_training(folder: Path, rng: random.Random) -> None:
    state = folder / "teacher.training"
    if rng.random() < 0.25:
        _change(state / "training_state.json", changed_json, rng)
    else:
        _change(state / "training_state.safetensors", changed_safetensors, rng)


def _go_on(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    return _pretrain(folder, folder / "text.txt", tokenizer=models.mask / "tokenizer.json")


def _corpora(folder: Path, models: TinyModels) -> None:
    text = write_corpus(folder / "a.txt", 150).read_text()
    records = [json.dumps({"text": document, "id": number}) for number, document in enumerate(text.split("\n\n"))]
    (folder / "b.jsonl").write_text("\n".join(records))
    (folder / "c.jsonl.zst").write_bytes(b"".join(zstandard.compress("\n".join(records[at:at + 50]).encode() + b"\n") for at in (0, 50, 100)))
    pq.write_table(pa.table({"text": text.split("\n\n"), "id": list(range(150))}), folder / "d.parquet")


def _spoil_corpus(folder: Path, rng: random.Random) -> None:
    file = folder / rng.choice(["a.txt", "b.jsonl", "b.jsonl", "c.jsonl.zst", "c.jsonl.zst", "d.parquet", "d.parquet"])
    (folder / "spoiled").write_text(file.name)
    if file.name == "b.jsonl" and rng.random() < 0.6:
        lines = file.read_bytes().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = changed_json(lines[at], rng)
        file.write_bytes(b"\n".join(lines))
    elif file.name == "c.jsonl.zst" and rng.random() < 0.3:
        file.write_bytes(zstandard.compress(changed_bytes((folder / "b.jsonl").read_bytes(), rng)))
    elif file.name == "d.parquet" and rng.random() < 0.7:
        file.write_bytes(parquet(changed_table(pq.read_table(file), rng), rng) if rng.random() < 0.6 else changed_footer(file.read_bytes(), rng))
    else:
        _change(file, changed_bytes, rng)


def _read_corpus(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    corpus = folder / (folder / "spoiled").read_text()
    return _pretrain(folder, corpus, tokenizer=models.mask / "tokenizer.json")


# Settings

CONFIGS: dict[str, dict[str, Any]] = {
    "generate": {"out": "o", "trajectories": 4, "arm": "both", "rollout": {"steps": 4, "seed": 1}, "shaping": {"candidates": 2, "tau": 0.5}},
    "distill": {"data": {"paths": ["a", "b"], "weights": [1, 2], "arm": "shaped"}, "budgets": {1: 1, 2: 2}, "real": {"weight": 0.1, "corpus": {"path": "x"}},
                "optim": {"steps": 3, "lr": 0.001, "seed": 1}, "workers": 2},
    "pretrain": {**SMALL, "corpus": {"path": "x"}}, "fit-compass": {"teacher": "t", "corpus": {"path": "x"}, "optim": {"steps": 2}},
    "evaluate": {"model": ["a"], "steps": [1, 2], "evaluator": ["embedded"], "temperatures": [0.5, 1.0], "samples": 4},
    "sample": {"model": "embedded", "number": 2, "rollout": {"steps": 2}}, "demo": {"out": "o", "trajectories": 4, "samples": 4},
    "ablate": {"name": "n", "question": "q?", "base": {"optim": {"steps": 3}}, "factors": {"data.best": [1.0, 0.5], "objective": ["event", "endpoint"]},
               "seeds": [0, 1], "evaluate": {"steps": [4], "samples": 4, "temperatures": [0.8]}},
}


def _commands(folder: Path, models: TinyModels) -> None:
    """No files; but the first case must not wait for imports."""
    for name in CONFIGS:
        command(name, "--help")


def _spoil_config(folder: Path, rng: random.Random) -> None:
    name = rng.choice(sorted(CONFIGS))
    (folder / f"{name}.yaml").write_bytes(changed_yaml(CONFIGS[name], rng))


def _read_config(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    file = next(folder.glob("*.yaml"))
    more: tuple[object, ...] = ("--set", rng.choice(["rollout.steps=3", "a.b.c=1", "optim={seed: 1}", "seed=.nan"])) if rng.random() < 0.1 else ()
    return command(file.stem, file, *more, "--print-config")


# Checkpoints of other projects


def _foreign(folder: Path, models: TinyModels) -> None:
    (folder / "tokenizer.json").write_bytes((models.mask / "tokenizer.json").read_bytes())
    weights = random_weights("mdlm", 300)
    torch.save({"state_dict": weights, "step": 3}, folder / "new.pth")
    torch.save({"ema": weights}, folder / "old.pth", _use_new_zipfile_serialization=False)
    (folder / "hub").mkdir()
    from safetensors.torch import save_file

    save_file(weights, folder / "hub" / "model.safetensors")
    (folder / "hub" / "config.json").write_text(json.dumps({"model_type": "mdlm", "time_conditioning": False, "n_heads": 2, "model_length": 8}))


def _spoil_foreign(folder: Path, rng: random.Random) -> None:
    name, change = rng.choice([("new.pth", changed_zip), ("old.pth", changed_bytes), ("hub/model.safetensors", changed_safetensors), ("hub/config.json", changed_json)])
    _change(folder / name, change, rng)
    (folder / "spoiled").write_text(name.removesuffix("/config.json").removesuffix("/model.safetensors"))


def _import(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    file = folder / (folder / "spoiled").read_text()
    heads = () if file.name == "hub" and rng.random() < 0.7 else ("--heads", 2)
    layout = () if file.name == "hub" else ("--layout", "mdlm")
    return command("import-teacher", file, "--tokenizer", folder / "tokenizer.json", *heads, *layout, "--out", folder / "teacher")


# What an evaluation keeps


IDENTITY = {"model": "f" * 64, "steps": 8}


def _some_texts() -> Samples:
    return Samples(np.arange(12, dtype=np.int64).reshape(3, 4), ["a", "b", ""], np.array([4, 3, 4]), 1.5, "words")


def _kept(folder: Path) -> tuple[Samples, Likelihood]:
    cache = SampleCache(folder / "kept")
    labels = {"model": "embedded", "steps": 8, "temperature": 1.0, "seed": 0}
    return (cache.samples(IDENTITY, labels, _some_texts),
            cache.likelihood(IDENTITY, lambda: Likelihood(np.array([1.0, 2.0, 3.0]), np.array([4, 4, 4]))))


def _evaluation(folder: Path, models: TinyModels) -> None:
    _kept(folder)


def _spoil_evaluation(folder: Path, rng: random.Random) -> None:
    file = next((folder / "kept" / rng.choice(["samples", "scores"])).iterdir())
    kind = rng.random()
    if kind < 0.3:
        _change(file, changed_bytes, rng)
    elif kind < 0.5:
        _change(file, changed_footer, rng)
    elif kind < 0.7:
        table = pq.read_table(file)
        facts = changed_json(table.schema.metadata[b"tsdfm"], rng)
        file.write_bytes(parquet(table.replace_schema_metadata({b"tsdfm": facts}), rng))
    else:
        file.write_bytes(parquet(changed_table(pq.read_table(file), rng), rng))


def _read_evaluation(folder: Path, rng: random.Random, models: TinyModels) -> Run:
    def read() -> None:
        samples, likelihood = _kept(folder)
        summarise(samples, {"judge": likelihood})
    return library(f"SampleCache({folder / 'kept'})", read)


SUBJECTS: dict[str, Subject] = {
    "shards": Subject(_dataset, _spoil_shard, _read_dataset, ("page.html", "student.training")),
    "manifests": Subject(_dataset, _spoil_manifest, _read_dataset, ("page.html", "student.training")),
    "tokenizers of datasets": Subject(_dataset, _spoil_dataset_tokenizer, _read_dataset, ("page.html", "student.training")),
    "cards": Subject(_dataset, _spoil_card, _read_dataset, ("page.html", "student.training")),
    "unfinished datasets": Subject(_unfinished, _spoil_unfinished, _resume, ("out",)),
    "models": Subject(_models, _spoil_model, _open_model),
    "tokenizers": Subject(_tokenizers, _spoil_tokenizer, _use_tokenizer, ("teacher", "teacher.training", "pretrain.yaml")),
    "training states": Subject(_training, _spoil_training, _go_on, ("teacher", "teacher.training", "pretrain.yaml")),
    "corpora": Subject(_corpora, _spoil_corpus, _read_corpus, ("teacher", "teacher.training", "pretrain.yaml")),
    "configs": Subject(_commands, _spoil_config, _read_config),
    "foreign checkpoints": Subject(_foreign, _spoil_foreign, _import, ("teacher",)),
    "evaluations": Subject(_evaluation, _spoil_evaluation, _read_evaluation, ("kept",)),
}


def unread(subject: Subject, folder: Path) -> Iterator[Path]:
    """The files that a run must leave as they are."""
    yield from (path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] not in subject.writes)
