"""Bring a teacher: a checkpoint of another project becomes a model folder that every command opens."""

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import CONFIG_FILE, is_ours
from tsdfm.pipeline.models.foreign.imported import Imported, end_of
from tsdfm.pipeline.models.foreign.layouts import layouts_of, shape_of, to_denoiser, without_padding, without_time
from tsdfm.pipeline.models.foreign.masked_lm import import_masked_lm, is_masked_lm
from tsdfm.pipeline.models.foreign.places import Place, find
from tsdfm.pipeline.models.foreign.weights import UnknownLayout, Weights, choose, read_weights
from tsdfm.pipeline.models.transformers import check_no_code
from tsdfm.pipeline.storage.atomic import sha256_file
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, explain
from tsdfm.schemas.import_teacher import CheckpointFile, ImportConfig, Told
from tsdfm.schemas.model import DenoiserConfig
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.terms import Layout, Source
from tsdfm.schemas.training_record import ImportRecord, Origin

LENGTH = 1024  # of all published models of these layouts
MOST_PADDING = 1024  # rows beyond the ids; more are another tokenizer's
PAD = "[PAD]"  # which Duo's code adds to a tokenizer that has none
SOURCES: dict[Layout, tuple[Source, ...]] = {
    "fs-dfm": ("uniform", "mask"), "mdlm": ("mask",), "sdtt": ("mask",), "duo": ("uniform",)}


@dataclass(frozen=True)
class _Found:
    """Weights in their own layout, the words that name them in an error, and what is said and assumed of them."""

    config: ImportConfig
    place: Place
    weights: Weights
    where: str
    layout: Layout
    told: Told
    assumed: list[str] = field(default_factory=list)


def import_teacher(config: ImportConfig) -> Imported:
    """Open, check and convert a checkpoint.

    Raises InputError naming what is wrong with it, or what it leaves open; WorkError if the Hub can't be reached.
    """
    place = find(config.checkpoint, config.file)
    if is_ours(place.folder / CONFIG_FILE):
        raise InputError(f"{config.checkpoint}: is a model of this project, nothing is to be imported; name it where a command "
                         "takes one, --teacher or --compass say")
    if is_masked_lm(config, place):
        return import_masked_lm(config, place)
    told = _told(place)
    try:
        sets = read_weights(place.file)
    except UnknownLayout:
        check_no_code(config.checkpoint, place.folder)
        raise
    taken = choose(sets, config.weights, place.file)
    weights, where = sets[taken], f"{place.file}:{taken}" if taken else str(place.file)
    layout = _layout(config, layouts_of(weights, where), told, place, where)
    network, vocabulary, assumed = _converted(_Found(config, place, weights, where, layout, told))
    record = ImportRecord(imported=Origin(
        layout=layout, weights=taken, sha256=sha256_file(place.file), others=sorted(set(sets) - {taken}), config=config,
        commit=place.commit))
    return Imported(network.eval().requires_grad_(False), vocabulary, record, assumed)


def _told(place: Place) -> Told:
    """What config.json beside the weights says; nothing where there is none."""
    path = place.folder / CONFIG_FILE
    if not path.is_file():
        return Told()
    try:
        return CheckpointFile.model_validate_json(read_regular(path)).told
    except ValidationError as error:
        raise explain(error, str(path)) from None


def _layout(config: ImportConfig, possible: list[Layout], told: Told, place: Place, where: str) -> Layout:
    """The one layout that the weights can have, config.json says, and the user doesn't contradict. Raises InputError."""
    wanted, beside = config.layout, place.folder / CONFIG_FILE
    if wanted not in ("auto", *possible):
        raise InputError(f"{where}: has the layout {' or '.join(possible)}, not {wanted}; give --layout auto, or one of those")
    if len(possible) == 1:
        return possible[0]
    if told.family is not None and told.layout is None:
        raise InputError(f"{beside}: says '{told.family}', whose tensors are named like MDLM's and mean something else; "
                         f"checkpoints of {', '.join(possible)} can be imported")
    if told.layout is not None and wanted not in ("auto", told.layout):
        raise InputError(f"{beside}: says '{told.family}', not {wanted}; leave out --layout, or give that project's file")
    if wanted != "auto":
        return next(layout for layout in possible if layout == wanted)
    if told.layout is None:
        raise InputError(f"{where}: may be of {', '.join(possible)}, which name their tensors alike, and no {CONFIG_FILE} "
                         "beside it says which; give --layout mdlm or sdtt (mask source), or duo (uniform source)")
    return told.layout


def _converted(found: _Found) -> tuple[Denoiser, Vocabulary, list[str]]:
    """The network and its vocabulary, and what is assumed of them. Raises InputError."""
    config, layout, told, where = found.config, found.layout, found.told, found.where
    timed = _timed(found)
    shape, rows, cond_dim = shape_of(found.weights, layout, config.heads or told.heads, where)
    vocabulary = _vocabulary(found, rows)
    source, needed = _source(config, rows, layout, vocabulary, where)
    if config.length is None and told.length is None:
        found.assumed.append(f"texts of {LENGTH} tokens (else --length)")
    if layout == "fs-dfm" and "kappa_exponent" not in config.model_fields_set:
        found.assumed.append("the schedule kappa_t = t (else --kappa-exponent)")
    student, end_id = "dt_embedding.mlp.0.weight" in found.weights, end_of(config, vocabulary, found.assumed)
    try:
        made = DenoiserConfig(
            **shape.model_dump(), vocab_size=needed, length=config.length or told.length or LENGTH, cond_dim=cond_dim,
            source=source, mask_id=vocabulary.mask_id if source == "mask" else None, kappa_exponent=config.kappa_exponent,
            step_size=student, conditioning="fused" if student else "sigma" if timed and layout != "fs-dfm" else "t",
            end_id=end_id,
        )
    except ValidationError as error:
        raise explain(error, where) from None
    network = to_denoiser(without_padding(found.weights, layout, made.vocab_size), layout, made, where)
    if not timed:
        without_time(network)
    return network, vocabulary, found.assumed


def _timed(found: _Found) -> bool:
    """Whether the network is told the time, or its noise level. Raises InputError where that is no question."""
    wanted, told = found.config.time_conditioning, found.told.timed
    if found.layout in ("fs-dfm", "duo"):
        if wanted is not None:
            raise InputError(f"--time-conditioning: a network of {found.layout} is always told the time; leave it out")
        if told is False:
            found.assumed.append(f"the network is told its noise level, as all of Duo are, though {CONFIG_FILE} says no")
        return True
    if wanted is None and told is None:
        found.assumed.append("the network is not told its noise level (else --time-conditioning)")
    return bool(told if wanted is None else wanted)


def _vocabulary(found: _Found, rows: int) -> Vocabulary:
    """The tokenizer that is given or lies beside; of Duo, with the [PAD] that a row is there for. Raises InputError."""
    config, place = found.config, found.place
    if config.tokenizer is None and not (place.folder / TOKENIZER_FILE).is_file():
        raise InputError(f"{config.checkpoint}: no {TOKENIZER_FILE} beside the weights; give --tokenizer (the published "
                         "models': GPT-2's)")
    path = Path(config.tokenizer) if config.tokenizer else place.folder
    vocabulary = Vocabulary.adopt(path, config.eos)
    if found.layout != "duo" or rows != vocabulary.size_without_mask + 1:
        return vocabulary
    padded = Vocabulary.adopt(path, config.eos, [PAD])
    if padded.tokenizer.token_to_id(PAD) != rows - 1:  # it has one already, or holes between its ids
        return vocabulary
    found.assumed.append(f"the last of {rows} rows is the {PAD} that Duo adds to a tokenizer without one")
    return padded


def _source(config: ImportConfig, rows: int, layout: Layout, vocabulary: Vocabulary, where: str) -> tuple[Source, int]:
    """The source, and the rows that its ids need: those with [MASK]'s are the mask source's. Raises InputError.

    More rows than ids are padding, which only the user can tell from another tokenizer's: by naming the source.
    """
    sizes: dict[Source, int] = {"mask": vocabulary.size, "uniform": vocabulary.size_without_mask}
    needed = {source: sizes[source] for source in SOURCES[layout]}
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
