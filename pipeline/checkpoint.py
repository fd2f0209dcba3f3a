"""Model folders: `config.json`, `model.safetensors` (float16 or float32), `tokenizer.json`, `training.json`, maybe `README.md`.

Weights are safetensors only; nothing is ever unpickled. A folder is written beside its final place and renamed, so it is
whole or absent. The name `embedded` stands for a model that ships with the package.
"""

import hashlib
import json
import shutil
import uuid
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from tsdfm.pipeline.causal import CausalLM
from tsdfm.pipeline.denoiser import Denoiser
from tsdfm.pipeline.nce import NceEncoder
from tsdfm.pipeline.tokenizer import FILE as TOKENIZER_FILE
from tsdfm.pipeline.tokenizer import MASK, Vocabulary
from tsdfm.schemas.base import Frozen, InputError
from tsdfm.schemas.model import CausalConfig, DenoiserConfig, NceConfig, parse_model_config

CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE, CARD_FILE = "config.json", "model.safetensors", "training.json", "README.md"
Network = Denoiser | CausalLM | NceEncoder


@dataclass(frozen=True)
class Checkpoint:
    """An opened model folder. `fingerprint`: sha256 over config, weights and tokenizer."""

    network: Network
    vocabulary: Vocabulary
    fingerprint: str
    path: Path


def build(config: DenoiserConfig | CausalConfig | NceConfig) -> Network:
    """The network of a config, freshly initialised."""
    if isinstance(config, DenoiserConfig):
        return Denoiser(config)
    return CausalLM(config) if isinstance(config, CausalConfig) else NceEncoder(config)


def embedded(name: str) -> Path:
    """Folder of a model that ships with the package: teacher-mask, teacher-uniform, compass, judge."""
    return Path(str(files("tsdfm.pipeline"))) / "assets" / name


def save(
    folder: Path, network: Network, vocabulary: Vocabulary, training: dict[str, Any], *, half: bool = False,
    card: str | None = None,
) -> None:
    """Write a model folder atomically, replacing an older one. `half` stores float16 weights; `card` is its README.md.

    Raises InputError if `folder` exists and is not a model folder.
    """
    if folder.exists() and not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: exists and is not a model folder; give another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        dtype = torch.float16 if half else torch.float32
        weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
        (temporary / WEIGHTS_FILE).write_bytes(save_safetensors(weights))
        (temporary / CONFIG_FILE).write_text(network.config.model_dump_json(indent=2) + "\n")
        (temporary / TOKENIZER_FILE).write_text(vocabulary.to_json(), encoding="utf-8")
        (temporary / TRAINING_FILE).write_text(json.dumps(training, indent=2, sort_keys=True) + "\n")
        if card is not None:
            (temporary / CARD_FILE).write_text(card, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError:
        raise InputError(f"{folder}: no readable {name} there; a model folder holds {CONFIG_FILE}, {WEIGHTS_FILE} "
                         f"and {TOKENIZER_FILE}") from None


def _fill(network: nn.Module, weights: dict[str, torch.Tensor], where: str) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise InputError(f"{where}: tensor {name} is {found.get(name, 'absent')}, the config wants "
                             f"{expected.get(name, 'none')}; weights and config don't belong together")
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()})


def _check_vocabulary(config: DenoiserConfig | CausalConfig, vocabulary: Vocabulary, folder: Path) -> None:
    """[MASK], the last id, has a row in models of the mask source alone."""
    masked = isinstance(config, DenoiserConfig) and config.mask_id is not None
    if config.vocab_size != vocabulary.size - (not masked):
        raise InputError(f"{folder}: the config has vocab_size {config.vocab_size}, its tokenizer {vocabulary.size} with "
                         f"{MASK}; they don't belong together")
    if isinstance(config, DenoiserConfig) and masked and config.mask_id != vocabulary.mask_id:
        raise InputError(f"{folder}: the config has mask_id {config.mask_id}, its tokenizer {vocabulary.mask_id}; "
                         "they don't belong together")


def load(folder: Path) -> Checkpoint:
    """Open a model folder, in float32, in eval mode, without gradients. Raises InputError naming what is wrong."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; give 'embedded' or a folder with {CONFIG_FILE}")
    config_bytes, weight_bytes = _read(folder, CONFIG_FILE), _read(folder, WEIGHTS_FILE)
    config = parse_model_config(config_bytes, str(folder / CONFIG_FILE))
    vocabulary = Vocabulary.load(folder)
    _check_vocabulary(config.trunk if isinstance(config, NceConfig) else config, vocabulary, folder)
    network = build(config)
    try:
        _fill(network, load_safetensors(weight_bytes), str(folder / WEIGHTS_FILE))
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS_FILE}: not a safetensors file ({error}); make or copy it anew") from None
    digest = hashlib.sha256(b"\0".join([config_bytes, weight_bytes, vocabulary.to_json().encode()])).hexdigest()
    network.eval().requires_grad_(False)
    return Checkpoint(network, vocabulary, digest, folder)


def load_denoiser(folder: Path) -> tuple[Denoiser, Checkpoint]:
    """Open a folder that must hold a denoiser. Raises InputError."""
    checkpoint = load(folder)
    if not isinstance(checkpoint.network, Denoiser):
        raise InputError(f"{folder}: holds a {checkpoint.network.config.kind} model; a teacher is a denoiser")
    return checkpoint.network, checkpoint


def describe(record: Frozen) -> dict[str, Any]:
    """A config as plain JSON data, for `training.json`."""
    return record.model_dump(mode="json")
