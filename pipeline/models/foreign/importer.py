"""Bring a teacher: a checkpoint of FS-DFM or MDLM becomes a model folder that every command opens."""

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import CONFIG_FILE
from tsdfm.pipeline.models.foreign.layouts import layout_of, shape_of, to_denoiser, without_padding, without_time
from tsdfm.pipeline.models.foreign.weights import Weights, choose, read_weights, weights_file
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, explain
from tsdfm.schemas.import_teacher import ImportConfig, MdlmFile
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.terms import Layout, Source
from tsdfm.schemas.training_record import ImportRecord, Origin

LENGTH = 1024  # of all published models of both layouts
MOST_PADDING = 1024  # rows beyond the ids; more are another tokenizer's


@dataclass(frozen=True)
class Imported:
    """A denoiser made of another project's weights, and where they are from."""

    network: Denoiser
    vocabulary: Vocabulary
    record: ImportRecord


@dataclass(frozen=True)
class _Found:
    """Weights in their own layout, and the words that name them in an error."""

    weights: Weights
    layout: Layout
    where: str


def import_teacher(config: ImportConfig) -> Imported:
    """Open, check and convert a checkpoint. Raises InputError naming what is wrong with it, or what it leaves open."""
    file = weights_file(Path(config.checkpoint))
    sets = read_weights(file)
    taken = choose(sets, config.weights, file)
    weights, where = sets[taken], f"{file}:{taken}" if taken else str(file)
    layout = layout_of(weights, where)
    if config.layout not in ("auto", layout):
        raise InputError(f"{where}: has the layout {layout}, not {config.layout}; give --layout {layout} or auto")
    vocabulary, beside = _vocabulary(config, file), _beside(file, layout)
    if layout == "fs-dfm" and config.time_conditioning is not None:
        raise InputError("--time-conditioning: an fs-dfm teacher is always told the time; leave it out")
    timed = bool(beside.time_conditioning if config.time_conditioning is None else config.time_conditioning)
    denoiser = _denoiser_config(config, _Found(weights, layout, where), vocabulary, beside, timed)
    network = to_denoiser(without_padding(weights, layout, denoiser.vocab_size), layout, denoiser, where)
    if layout == "mdlm" and not timed:
        without_time(network)
    record = ImportRecord(imported=Origin(
        layout=layout, weights=taken, sha256=sha256_file(file), others=sorted(set(sets) - {taken}), config=config))
    return Imported(network.eval().requires_grad_(False), vocabulary, record)


def _vocabulary(config: ImportConfig, file: Path) -> Vocabulary:
    if config.tokenizer is None and not (file.parent / TOKENIZER_FILE).is_file():
        raise InputError(f"{file}: no {TOKENIZER_FILE} beside it; give --tokenizer (both layouts' published models: GPT-2's)")
    path = Path(config.tokenizer) if config.tokenizer else file.parent
    return Vocabulary.adopt(path, config.eos)


def _beside(file: Path, layout: Layout) -> MdlmFile:
    """What MDLM's config.json beside the weights says; nothing where there is none."""
    path = file.parent / CONFIG_FILE
    if layout != "mdlm" or not path.is_file():
        return MdlmFile()
    try:
        found = MdlmFile.model_validate_json(read_regular(path))
    except ValidationError as error:
        raise explain(error, str(path)) from None
    # Families that share MDLM's names of tensors differ in what the numbers mean: Duo's are of the uniform source.
    if found.model_type is not None and found.model_type.lower() != "mdlm":
        raise InputError(f"{path}: says model_type '{found.model_type}', whose tensors are named like MDLM's and mean "
                         "something else; only MDLM and FS-DFM checkpoints can be imported")
    return found


def _source(config: ImportConfig, rows: int, layout: Layout, vocabulary: Vocabulary, where: str) -> tuple[Source, int]:
    """The source, and the rows that its ids need: those with [MASK]'s are the mask source's. Raises InputError.

    More rows than ids are padding, which only the user can tell from another tokenizer's: by naming the source.
    """
    needed: dict[Source, int] = {"mask": vocabulary.size}
    if layout != "mdlm":
        needed["uniform"] = vocabulary.size_without_mask
    fitting = [source for source, ids in needed.items() if ids == rows]
    if fitting and config.source not in (None, *fitting):
        raise InputError(f"{where}: {rows} rows over this tokenizer are the {fitting[0]} source, not {config.source}; "
                         "leave out --source, or give another --tokenizer")
    if fitting:
        return config.source or fitting[0], rows
    if config.source in needed and 0 < rows - needed[config.source] < MOST_PADDING:
        return config.source, needed[config.source]
    known = " or ".join(f"{ids} ({source})" for source, ids in sorted(needed.items(), key=lambda each: each[1]))
    cure = "give the tokenizer it was trained with (--tokenizer), or name the token that ends its texts (--eos)"
    if 0 < rows - min(needed.values()) < MOST_PADDING:
        cure += "; if its vocabulary is padded, name its source (--source), and the rows beyond its ids are left out"
    raise InputError(f"{where}: has a vocabulary of {rows}, its tokenizer gives {known}; {cure}")


def _denoiser_config(
    config: ImportConfig, found: _Found, vocabulary: Vocabulary, beside: MdlmFile, timed: bool
) -> DenoiserConfig:
    layout, where = found.layout, found.where
    shape, rows, cond_dim = shape_of(found.weights, layout, config.heads or beside.n_heads, where)
    source, needed = _source(config, rows, layout, vocabulary, where)
    student = "dt_embedding.mlp.0.weight" in found.weights
    try:
        return DenoiserConfig(
            **shape.model_dump(), vocab_size=needed, length=config.length or beside.model_length or LENGTH, cond_dim=cond_dim,
            source=source, mask_id=vocabulary.mask_id if source == "mask" else None, kappa_exponent=config.kappa_exponent,
            step_size=student, conditioning="fused" if student else "sigma" if layout == "mdlm" and timed else "t",
        )
    except ValidationError as error:
        raise explain(error, where) from None
