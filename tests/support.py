"""Small models and datasets that every test may use: random weights, spread posteriors, a real tokenizer."""

import shutil
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from tsdfm.pipeline.dataset.manifest import read_manifest
from tsdfm.pipeline.flow.generate import InThisProcess, generate_dataset
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.computing import AT_ONCE
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import Network, save
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.text.split import Part, split_of, splits_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.model import CausalConfig, ContrastConfig, DenoiserConfig, NceConfig
from tsdfm.schemas.terms import DeviceKind

torch.set_num_threads(1)

T = TypeVar("T")

LENGTH = 16
SHAPE = {"hidden_size": 32, "n_blocks": 2, "n_heads": 2}


@dataclass(frozen=True)
class TinyModels:
    """Model folders: two teachers, three fitted compasses for the mask teacher, and a teacher of another vocabulary."""

    mask: Path
    uniform: Path
    ar: Path
    nce: Path
    foreign: Path
    contrast: Path


def present(value: T | None) -> T:
    """A value that has to be there."""
    assert value is not None
    return value


def vocabulary(size: int = 300) -> Vocabulary:
    words = ["the quick brown fox jumps over the lazy dog", "energy compass keeps the most coherent jump", "masks fall in turn"]
    return Vocabulary.train([f"{words[i % 3]} {i}" for i in range(300)], size)


def denoiser_config(source: str, vocab: Vocabulary, length: int = LENGTH) -> DenoiserConfig:
    mask = source == "mask"
    return DenoiserConfig(**SHAPE, vocab_size=vocab.size - (not mask), length=length, cond_dim=16, source=source,
                          mask_id=vocab.mask_id if mask else None)


def scatter_weights(network: torch.nn.Module, seed: int, std: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=std, generator=generator)


def make_models(root: Path) -> TinyModels:
    vocab, other = vocabulary(), vocabulary(310)
    mask = denoiser_config("mask", vocab)
    causal = CausalConfig(**SHAPE, vocab_size=vocab.size - 1, length=LENGTH)
    networks: dict[str, tuple[Network, Vocabulary]] = {
        "mask": (Denoiser(mask), vocab), "uniform": (Denoiser(denoiser_config("uniform", vocab)), vocab),
        "ar": (CausalLM(causal), vocab),
        "nce": (NceEncoder(NceConfig(trunk=mask)), vocab), "foreign": (Denoiser(denoiser_config("mask", other)), other),
        "contrast": (ContrastLM(ContrastConfig(each=causal)), vocab),
    }
    for seed, (name, (network, words)) in enumerate(networks.items()):
        scatter_weights(network, seed)
        save(root / name, network, words, None)
    return TinyModels(*(root / name for name in networks))


def with_other_weights(folder: Path, to: Path) -> Path:
    """A copy of a model folder, in `to`, whose weights are others."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    first = min(weights)
    save_file(weights | {first: weights[first] + 1}, to / "model.safetensors")
    return to


@dataclass(frozen=True)
class Outcome:
    """What a run of the command line gave."""

    code: int
    stdout: str
    stderr: str


def assert_refused(outcome: Outcome, *words: str, code: int = 2) -> None:
    """One line that says `words`, no traceback, nothing on standard output."""
    lines = outcome.stderr.strip().splitlines()
    assert outcome.code == code, outcome
    assert lines[-1].startswith("Error: "), outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert sum(line.startswith("Error: ") for line in lines) == 1
    assert outcome.stdout == ""
    for word in words:
        assert word in lines[-1], f"{word!r} is not in {lines[-1]!r}"


def at_once(monkeypatch: pytest.MonkeyPatch, device: DeviceKind = "cpu", **numbers: int) -> None:
    """Change how much is computed together on a CPU, starting from what a device has."""
    monkeypatch.setitem(AT_ONCE, "cpu", replace(AT_ONCE[device], **numbers))


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder (or the file that it is) and its hash."""
    if folder.is_file():
        return {"": sha256_file(folder)}
    return {str(path.relative_to(folder)): sha256_file(path) for path in folder.rglob("*") if path.is_file()}


@contextmanager
def ray_here(cpus: int) -> Iterator[str]:
    """Ray in this process, of so many CPUs: commands that are run here use it as it is, where each would start its own, which takes seconds.

    Its workers have the environment variables of the moment in which this is entered. Gives its address, for other processes.
    """
    import ray

    found = ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        yield str(found.address_info["address"])
    finally:
        ray.shutdown()


def packages_without_ours(home: Path) -> Path:
    """A folder of links to all installed packages but ours, for a Python that is started with -S and given this folder."""
    packages = home / "packages"
    packages.mkdir()
    for each in Path(sysconfig.get_path("purelib")).iterdir():
        if "tsdfm" not in each.name and each.suffix != ".pth":
            (packages / each.name).symlink_to(each)
    return packages


def select(texts: Iterable[str], part: Part) -> list[str]:
    """The texts of a part of a corpus, in order."""
    return [text for text in texts if split_of(text) in splits_of(part)]


def write_corpus(path: Path, documents: int) -> Path:
    """Short documents of a tiny language."""
    nouns, verbs = ["fox", "dog", "bird", "cat", "horse"], ["sees", "follows", "greets", "leaves"]
    path.write_text("\n\n".join(
        f"Number {i}: the {nouns[i % 5]} {verbs[i % 4]} the {nouns[i % 3]}, and the {nouns[(i * 7) % 5]} sleeps until day {i}."
        for i in range(documents)))
    return path


def make_dataset(out: Path | str, models: TinyModels, **changes: object) -> DatasetManifest:
    """A finished dataset, made in this process, without Ray. Returns its manifest."""
    config = GenerateConfig.model_validate(tiny_config(out, models) | changes)
    generate_dataset(config, maker=InThisProcess(torch.device("cpu")))
    return read_manifest(open_store(str(out)))


def dataset_of(models: TinyModels) -> Path:
    """Where the dataset lies that is copied."""
    return models.mask.parent / "dataset"


def copy_dataset(out: Path, models: TinyModels) -> DatasetManifest:
    """A copy of what `make_dataset` makes without changes: for tests that need a dataset, and not the making. Returns its manifest."""
    shutil.copytree(dataset_of(models), out)
    return read_manifest(open_store(str(out)))


def tiny_config(out: Path | str, models: TinyModels) -> dict[str, Any]:
    """A config whose dataset takes a second."""
    return {"out": str(out), "teacher": str(models.mask), "compass": str(models.ar), "arm": "both", "trajectories": 10,
            "shard_size": 4, "rollout": {"steps": 8, "batch_size": 4}, "shaping": {"candidates": 4}}
