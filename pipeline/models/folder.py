"""Model folders: `config.json`, `model.safetensors` (float16 or float32), `tokenizer.json`, `training.json`, maybe `README.md`.

Weights are safetensors only; nothing is ever unpickled. A folder is written beside its final place and renamed, so it is
whole or absent. Models that ship with the package lie in `embedded/`, each with the recipe that it was trained by. While a
model is trained, its training state lies beside its folder, in NAME.training.
"""

import hashlib
import shutil
import uuid
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Generic, TypeVar, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.models.transformers import check_no_code, is_transformers_folder
from tsdfm.pipeline.models.weights import stored_dtypes, stored_shapes, undrawn
from tsdfm.pipeline.storage.hub.models import HUB, located
from tsdfm.pipeline.storage.store import explained
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import MASK, Vocabulary
from tsdfm.schemas.base import Frozen, InputError, WorkError, first_line, plain_json, to_json
from tsdfm.schemas.model import (
    AnyConfig,
    CausalConfig,
    ContrastConfig,
    DenoiserConfig,
    NceConfig,
    own_config,
    parse_model_config,
)
from tsdfm.schemas.publish import RECEIPT_FILE
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.terms import Source

CONFIG_FILE, WEIGHTS_FILE, TRAINING_FILE, CARD_FILE = "config.json", "model.safetensors", "training.json", "README.md"
REPLACED = {CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE, TRAINING_FILE, CARD_FILE, RECEIPT_FILE}  # what a new model may replace
NAMED = 3  # files in a message
Network = Denoiser | CausalLM | NceEncoder | ContrastLM
N = TypeVar("N", bound=Network, covariant=True)
EMBEDDED = "embedded"


@dataclass(frozen=True)
class ModelFolder(Generic[N]):
    """An opened model folder. `fingerprint`: sha256 over config, weights and tokenizer."""

    network: N
    vocabulary: Vocabulary
    fingerprint: str
    path: Path


def build(config: AnyConfig) -> Network:
    """The network of a config, freshly initialised."""
    if isinstance(config, DenoiserConfig):
        return Denoiser(config)
    if isinstance(config, CausalConfig):
        return CausalLM(config)
    return NceEncoder(config) if isinstance(config, NceConfig) else ContrastLM(config)


def _of_tokens(config: AnyConfig) -> DenoiserConfig | CausalConfig:
    """The part of a config that says what tokens its network takes."""
    if isinstance(config, ContrastConfig):
        return config.each
    return config.trunk if isinstance(config, NceConfig) else config


def embedded(name: str) -> Path:
    """The folder of a model that ships with the package: teacher-mask, teacher-uniform, compass, judge."""
    return Path(str(files("tsdfm.pipeline.models"))) / "embedded" / name


def teacher_folder(name: str, source: Source | None = None) -> Path:
    """The folder of a denoiser by name: 'embedded', 'embedded:mask', 'embedded:uniform', hub:USER/NAME[@REVISION], or a folder.

    Args:
        name: as typed.
        source: which embedded one 'embedded' is; None: the mask source's.

    Raises InputError for another 'embedded:...', or one whose source is not `source`. InputError or
    WorkError if the Hub does not give it.
    """
    kind, colon, named = name.partition(":")
    if kind != EMBEDDED:
        return located(name)
    if colon and named not in get_args(Source):
        raise InputError(f"model {name}: no such embedded model; give 'embedded:mask', 'embedded:uniform' or a folder")
    if colon and source not in (None, named):
        raise InputError(f"model {name}: is of the {named} source, not of the {source} source; leave out source, or name it")
    return embedded(f"teacher-{named or source or 'mask'}")


def trained_on(name: str) -> str | None:
    """The corpus that a model was trained on, by its training.json; None where that doesn't say so, or isn't on this machine.

    `name`: 'embedded', 'embedded:uniform', or a folder.
    """
    try:
        file = teacher_folder(name) / TRAINING_FILE if not name.startswith(HUB) else None
        found = None if file is None else plain_json(read_regular(file), str(file))
    except (InputError, OSError):
        return None
    for part in ("config", "corpus", "path"):
        found = found.get(part) if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def state_folder(out: Path) -> Path:
    """Where the training state of the model in `out` lies while it is trained."""
    return out.with_name(f"{out.name}.training")


def check_target(out: Path) -> None:
    """Refuse a folder that `save` would refuse, and make the state folder: before anything expensive. Raises InputError."""
    refuse_others(out)
    try:
        state_folder(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot write there ({error.strerror}); give a folder you can write to") from None


def refuse_others(folder: Path) -> None:
    """Raises InputError for whatever a model folder must not replace: all but a model of this project and nothing else."""
    if folder.is_symlink():
        raise InputError(f"{folder}: is a symbolic link, which a finished model can't replace; give the folder itself as --out")
    if not folder.exists():
        return
    if folder.is_mount():
        raise InputError(f"{folder}: is the mount point of a disk, which a finished model can't replace; give a folder on that "
                         "disk as --out")
    if not is_ours(folder / CONFIG_FILE):
        raise InputError(f"{folder}: exists and is not a model folder of this project, and nothing else is replaced; give "
                         "another --out")
    others = sorted(path.name for path in folder.iterdir() if path.name not in REPLACED)
    if others:
        raise InputError(f"{folder}: holds more than a model ({', '.join(others[:NAMED])}), which would be lost if a new one "
                         "replaced it; move that away, or give another --out")


def is_ours(config: Path) -> bool:
    """Whether a config.json is of a model of this project."""
    try:
        data = plain_json(read_regular(config), str(config))
    except (OSError, InputError):
        return False
    return isinstance(data, dict) and "kind" in data


def save(
    folder: Path, network: Network, vocabulary: Vocabulary, training: Frozen | None, *, half: bool = False,
    card: str | None = None,
) -> None:
    """Write a model folder atomically, replacing an older one.

    Raises InputError if `folder` is something else or can't be written, WorkError if a weight is not finite or the disk full.

    Args:
        folder: where.
        network: its weights and config are kept.
        vocabulary: its tokenizer.
        training: how it was made (a record of `schemas.training_record`), for training.json; None: an empty object.
        half: store float16 weights.
        card: its README.md, if it has one.
    """
    refuse_others(folder)
    with explained("write there", str(folder)):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
        temporary.mkdir()
        try:
            dtype = torch.float16 if half else torch.float32
            weights = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in network.state_dict().items()}
            for name, tensor in weights.items():
                if not bool(tensor.isfinite().all()):
                    raise WorkError(f"{folder}: tensor {name} is not finite{' in float16' if half else ''}; nothing was saved"
                                    + ("; leave out --half" if half else ""))
            (temporary / WEIGHTS_FILE).write_bytes(save_safetensors(weights))
            (temporary / CONFIG_FILE).write_text(network.config.model_dump_json(indent=2) + "\n")
            (temporary / TOKENIZER_FILE).write_text(vocabulary.to_json(), encoding="utf-8")
            (temporary / TRAINING_FILE).write_text("{}\n" if training is None else to_json(training))
            if card is not None:
                (temporary / CARD_FILE).write_text(card, encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def holds_whole(folder: Path, *, half: bool) -> bool:
    """Whether a folder holds a model that opens, its weights stored in float16 if `half`, else in float32."""
    try:
        load(folder)
        return (stored_dtypes(folder / WEIGHTS_FILE) == {"F16"}) == half
    except InputError:
        return False


def _read(folder: Path, name: str) -> bytes:
    try:
        return read_regular(folder / name)
    except OSError:
        raise _missing(folder, name) from None


def _missing(folder: Path, name: str) -> InputError:
    return InputError(f"{folder}: no readable {name} there; a model folder holds {CONFIG_FILE}, {WEIGHTS_FILE} "
                      f"and {TOKENIZER_FILE}")


def _built(config: AnyConfig, shapes: dict[str, tuple[int, ...]], where: str) -> Network:
    """The network of a config without its weights. Raises InputError unless a file's tensors have the shapes that it wants."""
    try:
        with torch.device("meta"), undrawn():  # nothing is allocated or drawn: what a config says is not yet to be trusted
            network = build(config)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise InputError(f"{where}: no model can be of the sizes that the config wants ({first_line(error, 100)}); they don't "
                         "belong together") from None
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise InputError(f"{where}: tensor {name} is {shapes.get(name, 'absent')}, the config wants "
                             f"{expected.get(name, 'none')}; weights and config don't belong together")
    return network


def _fill(network: nn.Module, data: bytes, where: str) -> None:
    try:
        weights = load_safetensors(data)
    except SafetensorError as error:
        raise InputError(f"{where}: not a safetensors file ({error}); make or copy it anew") from None
    for name, tensor in weights.items():
        if not bool(tensor.isfinite().all()):
            raise InputError(f"{where}: tensor {name} holds numbers that are not finite; make or copy it anew")
    # Tensors of their own: those of a file's bytes need not be aligned.
    network.load_state_dict({name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}, assign=True)


def _check_vocabulary(config: DenoiserConfig | CausalConfig, vocabulary: Vocabulary, folder: Path) -> None:
    """Where [MASK] is the last id, only models of the mask source have a row for it."""
    masked = isinstance(config, DenoiserConfig) and config.mask_id is not None
    if config.vocab_size != (vocabulary.size if masked else vocabulary.size_without_mask):
        raise InputError(f"{folder}: the config has vocab_size {config.vocab_size}, its tokenizer {vocabulary.size} with "
                         f"{MASK}; they don't belong together")
    if isinstance(config, DenoiserConfig) and masked and config.mask_id != vocabulary.mask_id:
        raise InputError(f"{folder}: the config has mask_id {config.mask_id}, its tokenizer {vocabulary.mask_id}; "
                         "they don't belong together")
    if isinstance(config, DenoiserConfig) and config.end_id not in (None, vocabulary.eos_id):
        raise InputError(f"{folder}: the config has end_id {config.end_id}, its tokenizer ends texts with {vocabulary.eos_id}; "
                         "they don't belong together")


def load(folder: Path) -> ModelFolder[Network]:
    """Open a model folder, in float32, in eval mode, without gradients. Raises InputError naming what is wrong."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; give 'embedded' or a folder with {CONFIG_FILE}")
    if is_transformers_folder(folder):
        check_no_code(str(folder), folder)
        raise InputError(f"{folder}: holds a model of transformers (by its {CONFIG_FILE}): a causal one can be a judge or a "
                         "compass, a masked one becomes a teacher by import-teacher; give a model folder of this project")
    config_bytes, file = own_config(_read(folder, CONFIG_FILE)), folder / WEIGHTS_FILE
    config = parse_model_config(config_bytes, str(folder / CONFIG_FILE))
    vocabulary = Vocabulary.load(folder)
    _check_vocabulary(_of_tokens(config), vocabulary, folder)
    if not file.is_file():
        raise _missing(folder, WEIGHTS_FILE)
    network = _built(config, stored_shapes(file), str(file))
    if any(buffer.is_meta for buffer in network.buffers()):  # what is computed of sizes is in no file
        with undrawn():
            network = build(config)
    weight_bytes = _read(folder, WEIGHTS_FILE)
    _fill(network, weight_bytes, str(file))
    digest = hashlib.sha256(b"\0".join([config_bytes, weight_bytes, vocabulary.to_json().encode()])).hexdigest()
    network.eval().requires_grad_(False)
    return ModelFolder(network, vocabulary, digest, folder)


def load_model(name: str) -> ModelFolder[Denoiser]:
    """Open a teacher or student by name: 'embedded', 'embedded:uniform', hub:USER/NAME[@REVISION], or a folder.

    Raises InputError, or WorkError where the Hub can't be reached.

    It is in float32, in eval mode, without gradients, on the CPU; move `network` where you want it.
    """
    return load_denoiser(teacher_folder(name))


def load_denoiser(folder: Path) -> ModelFolder[Denoiser]:
    """Open a folder that must hold a denoiser. Raises InputError."""
    opened = load(folder)
    if not isinstance(opened.network, Denoiser):
        raise InputError(f"{folder}: holds a {opened.network.config.kind} model; a teacher is a denoiser")
    return ModelFolder(opened.network, opened.vocabulary, opened.fingerprint, opened.path)
