"""Open the teacher, the compass and the prompts that a config names, and check that they belong together."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from pydantic import ValidationError

from tsdfm.pipeline.flow.compass import (
    CausalCompass,
    Compass,
    ContrastCompass,
    DenoiserCompass,
    EnergyFunction,
    FittedCompass,
    FunctionCompass,
    MaskedDenoiserCompass,
    NceCompass,
    TokenCompass,
    name_of,
)
from tsdfm.pipeline.flow.prompts import Given, Prompt, prompts_in
from tsdfm.pipeline.flow.rings.clocks import clocks_of
from tsdfm.pipeline.flow.texts.blocks import Extent
from tsdfm.pipeline.flow.transformers_compass import TransformersCompass
from tsdfm.pipeline.models.causal import CausalLM, ContrastLM
from tsdfm.pipeline.models.computing import compute_in, prepare
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import EMBEDDED, ModelFolder, Network, embedded, load, load_denoiser, teacher_folder
from tsdfm.pipeline.models.nce import NceEncoder
from tsdfm.pipeline.models.transformers import is_transformers_folder
from tsdfm.pipeline.storage.hub.models import located
from tsdfm.pipeline.text.same_tokenizer import difference
from tsdfm.schemas.base import InputError
from tsdfm.schemas.former import FORMER_TOKENIZERS
from tsdfm.schemas.generate import GenerateConfig
from tsdfm.schemas.given import BlockFacts
from tsdfm.schemas.manifest import CompassFacts, Identity, TeacherFacts
from tsdfm.schemas.model import DenoiserConfig, NceConfig
from tsdfm.schemas.terms import Dtype

TRAJECTORIES = 256  # of a dataset, where nothing says how many


@dataclass(frozen=True)
class Models:
    """What makes trajectories: teacher, compass and prompts, opened, what a manifest records of the compass, and blocks."""

    teacher: ModelFolder[Denoiser]
    compass: Compass | None
    compass_facts: CompassFacts | None
    given: Given | None = None  # the prompts of the trajectories; None: they are written whole
    blocks: BlockFacts | None = None  # how texts lie in them, if they are longer than the teacher's

    @property
    def free(self) -> float | None:
        """How many positions of a trajectory are not given, on average; None: all of each. Of blocks as if no text ended."""
        blocks, length = self.blocks, self.teacher.network.config.length
        if blocks is None:
            return None if self.given is None else self.given.free
        first = length if self.given is None else self.given.free
        return (first + (blocks.per_text - 1) * (length - blocks.overlap)) / blocks.per_text

    def compass_in(self, dtype: Dtype) -> None:
        """Have the compass compute in a dtype (see `models.computing`)."""
        if isinstance(self.compass, FittedCompass):
            compute_in(self.compass.network, dtype)
        elif isinstance(self.compass, TransformersCompass):
            self.compass.opened.model.to(getattr(torch, dtype))

    def to(self, device: torch.device) -> None:
        """Move both; somebody's own compass is left where it is."""
        self.teacher.network.to(device)
        if isinstance(self.compass, FittedCompass):
            self.compass.network.to(device)
        elif isinstance(self.compass, TransformersCompass):
            self.compass.opened.model.to(device)


def open_models(
    config: GenerateConfig, device: torch.device, compass: Compass | EnergyFunction | None = None
) -> Models:
    """Load teacher and compass onto a device, to compute as `config.rollout` says: its `dtype`, and compiled where it asks.

    `compass`, if given, is taken in place of the config's: an object of the protocol, or a function. It computes as it does.

    Raises InputError if anything is missing, or they don't fit together, or nothing can be compiled here.
    """
    prompts = None if config.prompts is None else prompts_in(config.prompts, config.prompt_field, gaps=config.prompt_gaps)
    folder = teacher_folder(config.teacher, config.source)
    opened = load_denoiser(folder)
    teacher = opened.network
    if config.source is not None and teacher.config.source != config.source:
        raise InputError(f"teacher {folder}: was trained on the {teacher.config.source} source, not {config.source}; "
                         "leave out --source or give another teacher")
    clocks_of(config.rollout, teacher.config)
    blocks, length = _blocks(config, opened)
    if config.rollout.top_k > teacher.config.vocab_size - (teacher.config.mask_id is not None):
        raise InputError(f"rollout.top_k: {config.rollout.top_k} is more than the teacher's vocabulary; lower it")
    given = None if prompts is None else _given(config, prompts, opened, length)
    if compass is not None:
        _check_custom(compass, opened, length)
        models = Models(opened, compass if isinstance(compass, Compass) else FunctionCompass(compass), _facts_of(compass))
    else:
        models = Models(opened, *open_compass(config.compass, opened, length, device))
        models.compass_in(config.rollout.dtype)
    _check_level(config, models)
    prepare(teacher, config.rollout.dtype, config.rollout.compile)
    teacher.to(device)
    return replace(models, given=given, blocks=blocks)


def _blocks(config: GenerateConfig, teacher: ModelFolder[Denoiser]) -> tuple[BlockFacts | None, int]:
    """How texts of the length that is asked for lie in trajectories (None: each is one), and the tokens of a trajectory.

    Raises InputError: no such blocks, or numbers of trajectories that are not whole texts.
    """
    model = teacher.network.config
    extent = Extent.of(model, teacher.vocabulary, length=config.rollout.length, until="length", overlap=config.overlap)
    per_text = len(extent.starts)
    if per_text == 1:
        return None, extent.size
    per_prompt = None if config.prompts is None else config.per_prompt
    for name, number in (("trajectories", config.trajectories), ("per_prompt", per_prompt)):
        if number is not None and number % per_text:
            raise InputError(f"{name}: {number:,} are not whole texts: one of {extent.length:,} tokens is {per_text:,} "
                             f"trajectories, blocks of {extent.size}; give {_up(number, per_text):,}, say")
    return BlockFacts(per_text=per_text, overlap=extent.overlap), extent.size


def _up(number: int, unit: int) -> int:
    """The smallest multiple of a unit that is not below a number."""
    return -(-number // unit) * unit


def _given(config: GenerateConfig, prompts: list[Prompt], teacher: ModelFolder[Denoiser], length: int) -> Given:
    """The prompts as tokens. Raises InputError: one can't be given to this teacher, or there are fewer than trajectories."""
    if teacher.network.config.end_id is not None and config.prompt_gaps:
        raise InputError(f"prompt_gaps: the texts of teacher {teacher.path} end, and where is not told if words are given "
                         "after a gap; leave it out, and give beginnings")
    given = Given.of(prompts, teacher.vocabulary, length, config.per_prompt)
    if (config.trajectories or given.trajectories) > given.trajectories or given.trajectories >= 2**31:
        raise InputError(f"{config.prompts}: has {len(given):,} prompts, which are {given.trajectories:,} trajectories of "
                         f"{config.per_prompt:,} each; give --trajectories up to that (and 2^31), or another --per-prompt")
    return given


def _check_level(config: GenerateConfig, models: Models) -> None:
    """Raises InputError where single tokens are to be chosen and can't be: by a compass that scores whole texts only, or where
    texts end, so that a token is compared with an end.
    """
    shaping, model = config.shaping, models.teacher.network.config
    chosen = config.arm != "blind" and shaping.candidates > 1 and shaping.level != "sequence"
    if chosen and model.end_id is not None:
        raise InputError(f"shaping.level: '{shaping.level}' is for texts that don't end, and the teacher was trained on padded "
                         "ones; give --level sequence")
    if chosen and not isinstance(models.compass, TokenCompass):
        kind = "this compass" if models.compass_facts is None else f"a compass of kind '{models.compass_facts.kind}'"
        raise InputError(f"shaping.level: '{shaping.level}' needs energies of single tokens, and {kind} gives none for the "
                         f"{model.source} source; give a causal language model as --compass, or --level sequence")


def _check_custom(compass: Compass | EnergyFunction, teacher: ModelFolder[Denoiser], length: int) -> None:
    """Raises InputError where somebody's own compass is none, or says that it is too small (see `Compass`)."""
    if not isinstance(compass, Compass) and not callable(compass):
        raise InputError(f"compass: a {name_of(compass)} is neither a function of (states, t) nor has all of "
                         "`needs_completion`, `proposal_weight` and `energy`; give it what it lacks")
    positions, ids = getattr(compass, "positions", None), getattr(compass, "vocab_size", None)
    if isinstance(positions, int) and positions < length:
        raise InputError(f"compass {name_of(compass)}: has {positions} positions, the texts have {length} tokens; give another")
    if isinstance(ids, int) and ids <= _highest_id(teacher):
        raise InputError(f"compass {name_of(compass)}: takes ids below {ids}, the teacher writes ids up to "
                         f"{_highest_id(teacher)}; give another")


def _highest_id(teacher: ModelFolder[Denoiser]) -> int:
    """The highest id that a teacher writes; [MASK], the last of the mask source's, is never written."""
    config = teacher.network.config
    return config.vocab_size - 1 - (config.mask_id is not None)


def _facts_of(compass: Compass | EnergyFunction) -> CompassFacts:
    """What the manifest says of somebody's own compass: the fingerprint that it has, else that of its name.

    Raises InputError: its fingerprint is no sha256.
    """
    fingerprint = getattr(compass, "fingerprint", None)
    if fingerprint is None:
        fingerprint = hashlib.sha256(name_of(compass).encode()).hexdigest()
    try:
        return CompassFacts(kind="custom", fingerprint=fingerprint)
    except ValidationError:
        raise InputError(f"the compass {name_of(compass)} has the fingerprint {fingerprint!r}, which is no sha256 in 64 "
                         "hexadecimal digits; make it hashlib.sha256(...).hexdigest() of what its energies depend on") from None


def open_compass(
    name: str, teacher: ModelFolder[Denoiser], length: int, device: torch.device
) -> tuple[Compass | None, CompassFacts | None]:
    """The compass of a name: 'none', 'denoiser', 'embedded', a folder of ours or of transformers, also on the Hub.

    Raises InputError: no such compass, or it does not fit the teacher's vocabulary and source, or texts of `length` tokens.
    """
    if name == "none":
        return None, None
    if name == "denoiser":
        compass = DenoiserCompass if teacher.network.config.mask_id is None else MaskedDenoiserCompass
        return compass(teacher.network), CompassFacts(kind="denoiser", fingerprint=teacher.fingerprint)
    folder = embedded("compass") if name == EMBEDDED else located(name)
    if is_transformers_folder(folder):
        external = TransformersCompass.open(folder, teacher.vocabulary, length, device, teacher.network.config.end_id)
        return external, CompassFacts(kind="ar", fingerprint=external.fingerprint)
    opened = load(folder)
    other = difference(teacher.vocabulary.tokenizer, opened.vocabulary.tokenizer)
    if other is not None:
        raise InputError(f"compass {folder}: its tokenizer is not the teacher's ({teacher.path}): {other}; "
                         f"fit a compass with this teacher{_or_a_former_one(teacher, opened)}")
    network = opened.network.to(device)
    if isinstance(network, Denoiser):
        raise InputError(f"compass {folder}: holds a denoiser; give a compass folder, or 'denoiser' for the teacher's own "
                         "energy")
    _check_fit(folder, network, teacher.network.config, length)
    if isinstance(network, CausalLM):
        return CausalCompass(network, teacher.network.config.end_id), CompassFacts(kind="ar", fingerprint=opened.fingerprint)
    if isinstance(network, ContrastLM):
        end_id = teacher.network.config.end_id
        return ContrastCompass(network, end_id), CompassFacts(kind="contrast", fingerprint=opened.fingerprint)
    return NceCompass(network), CompassFacts(kind="nce", fingerprint=opened.fingerprint)


def _or_a_former_one(teacher: ModelFolder[Denoiser], compass: ModelFolder[Network]) -> str:
    """What else helps where one of two models is of the embedded ones of a former version, or was made with them."""
    of_teacher, of_compass = (FORMER_TOKENIZERS.get(each.vocabulary.fingerprint) for each in (teacher, compass))
    if of_teacher is not None:
        return f", or give a copy of the embedded one of tsdfm-pipeline {of_teacher}, whose tokenizer the teacher has"
    return "" if of_compass is None else f"; it has that of the embedded models of tsdfm-pipeline {of_compass}"


def _check_fit(folder: Path, network: CausalLM | NceEncoder | ContrastLM, teacher: DenoiserConfig, length: int) -> None:
    """Raises InputError unless a compass was fitted to the teacher's source and vocabulary, and to texts of `length` tokens."""
    if isinstance(network, NceEncoder):
        trunk = network.config.trunk
        if trunk.source != teacher.source:
            raise InputError(f"compass {folder}: was fitted on the {trunk.source} source, the teacher's is {teacher.source}; "
                             "fit a compass with this teacher")
        if trunk.vocab_size != teacher.vocab_size:
            raise InputError(f"compass {folder}: has rows for {trunk.vocab_size} ids, the teacher for {teacher.vocab_size}; "
                             "fit a compass with this teacher")
        if trunk.end_id != teacher.end_id:
            raise InputError(f"compass {folder}: was fitted to {trunk.texts} texts, the teacher's are {teacher.texts}; fit a "
                             "compass with this teacher")
    of_texts = network.config.each if isinstance(network, ContrastLM) else network.config
    longest = of_texts.trunk.length if isinstance(of_texts, NceConfig) else of_texts.length
    if longest < length:
        raise InputError(f"compass {folder}: was fitted to texts of {longest} tokens, these have {length}; fit a compass "
                         "with this teacher, or give a shorter --length")


def identity_of(config: GenerateConfig, models: Models, device: torch.device) -> Identity:
    """All that the dataset's bytes depend on, with every default resolved."""
    opened, given, blocks = models.teacher, models.given, models.blocks
    teacher, per_text = opened.network.config, 1 if blocks is None else blocks.per_text
    length = min(config.rollout.length or teacher.length, teacher.length)
    trajectories = config.trajectories or (_up(TRAJECTORIES, per_text) if given is None else given.trajectories)
    return Identity(
        trajectories=trajectories, arm=config.arm, shard_size=_up(config.shard_size, per_text),
        rollout=config.rollout.model_copy(update={
            "length": length, "clocks": clocks_of(config.rollout, teacher)}),
        shaping=config.shaping,
        teacher=TeacherFacts(
            fingerprint=opened.fingerprint, source=teacher.source, vocab_size=teacher.vocab_size,
            mask_id=teacher.mask_id, kappa_exponent=teacher.kappa_exponent, end_id=teacher.end_id),
        compass=models.compass_facts, tokenizer=opened.vocabulary.fingerprint,
        device="cuda" if device.type == "cuda" else "cpu", shards_per_file=config.shards_per_file,
        prompts=None if given is None else given.facts(trajectories), blocks=blocks,
    )


def resized(identity: Identity, models: Models, trajectories: int) -> Identity:
    """The identity of the dataset of another number of trajectories, else the same: of the prompts, those that they need."""
    given = models.given
    prompts = None if given is None else given.facts(min(trajectories, given.trajectories))
    return identity.model_copy(update={"trajectories": trajectories, "prompts": prompts})
