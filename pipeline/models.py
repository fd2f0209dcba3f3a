"""Open the teacher and the compass that a config names, and check that they belong together."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from tsdfm.pipeline.causal import CausalLM
from tsdfm.pipeline.checkpoint import CONFIG_FILE, Checkpoint, embedded, load, load_denoiser
from tsdfm.pipeline.compass import CausalCompass, Compass, DenoiserCompass, NceCompass
from tsdfm.pipeline.denoiser import Denoiser
from tsdfm.pipeline.nce import NceEncoder
from tsdfm.pipeline.transformers_lm import TransformersCompass, is_transformers_folder
from tsdfm.schemas.base import InputError
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.manifest import CompassFacts, Identity, TeacherFacts


@dataclass(frozen=True)
class Models:
    """What a worker owns: teacher, compass, vocabulary, and the facts that a manifest records of them."""

    teacher: Denoiser
    checkpoint: Checkpoint
    compass: Compass | None
    compass_facts: CompassFacts | None


def teacher_folder(name: str, source: Literal["mask", "uniform"] | None) -> Path:
    """The folder of a teacher named on the command line."""
    return embedded(f"teacher-{source or 'mask'}") if name == "embedded" else Path(name)


def open_models(config: GenerateConfig, device: torch.device) -> Models:
    """Load teacher and compass onto a device. Raises InputError if either is missing or they don't fit together."""
    folder = teacher_folder(config.teacher, config.source)
    teacher, checkpoint = load_denoiser(folder)
    if config.source is not None and teacher.config.source != config.source:
        raise InputError(f"teacher {folder}: was trained on the {teacher.config.source} source, not {config.source}; "
                         "leave out --source or give another teacher")
    length = config.rollout.length
    if length is not None and length > teacher.config.length:
        raise InputError(f"rollout.length: {length} is longer than the teacher's {teacher.config.length}; "
                         "give a length up to that")
    if config.rollout.top_k > teacher.config.vocab_size - (teacher.config.mask_id is not None):
        raise InputError(f"rollout.top_k: {config.rollout.top_k} is more than the teacher's vocabulary; lower it")
    teacher.to(device)
    compass, facts = open_compass(config.compass, teacher, checkpoint, device)
    return Models(teacher, checkpoint, compass, facts)


def open_compass(
    name: str, teacher: Denoiser, checkpoint: Checkpoint, device: torch.device
) -> tuple[Compass | None, CompassFacts | None]:
    """The compass of a name: 'none', 'denoiser', 'embedded', or a folder of ours or of transformers."""
    if name == "none":
        return None, None
    if name == "denoiser":
        return DenoiserCompass(teacher), CompassFacts(kind="denoiser", fingerprint=checkpoint.fingerprint)
    folder = embedded("compass") if name == "embedded" else Path(name)
    if is_transformers_folder(folder / CONFIG_FILE):
        external = TransformersCompass.open(folder, checkpoint.vocabulary, device)
        return external, CompassFacts(kind="ar", fingerprint=external.fingerprint)
    opened = load(folder)
    if opened.vocabulary.fingerprint != checkpoint.vocabulary.fingerprint:
        raise InputError(f"compass {folder}: its tokenizer is not the teacher's ({checkpoint.path}); "
                         "fit a compass with this teacher")
    network = opened.network.to(device)
    if isinstance(network, CausalLM):
        return CausalCompass(network), CompassFacts(kind="ar", fingerprint=opened.fingerprint)
    if isinstance(network, NceEncoder):
        if network.config.trunk.source != teacher.config.source:
            raise InputError(f"compass {folder}: was fitted on the {network.config.trunk.source} source, the teacher's is "
                             f"{teacher.config.source}; fit a compass with this teacher")
        return NceCompass(network), CompassFacts(kind="nce", fingerprint=opened.fingerprint)
    raise InputError(f"compass {folder}: holds a denoiser; give a compass folder, or 'denoiser' for the teacher's own energy")


def identity_of(config: GenerateConfig, models: Models, device: torch.device) -> Identity:
    """All that the dataset's bytes depend on, with every default resolved."""
    teacher = models.teacher.config
    return Identity(
        trajectories=config.trajectories, arm=config.arm, shard_size=config.shard_size,
        rollout=config.rollout.model_copy(update={"length": config.rollout.length or teacher.length}),
        shaping=config.shaping,
        teacher=TeacherFacts(
            fingerprint=models.checkpoint.fingerprint, source=teacher.source, vocab_size=teacher.vocab_size,
            mask_id=teacher.mask_id, kappa_exponent=teacher.kappa_exponent),
        compass=models.compass_facts, tokenizer=models.checkpoint.vocabulary.fingerprint,
        device="cuda" if device.type == "cuda" else "cpu",
    )
