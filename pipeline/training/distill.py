"""Distil a student from frozen shards: no teacher process, no compass.

The student is its teacher's copy with a step embedding (`student.student_of`), fitted by `objectives.StudentLoss` to the
batches of `batches.Reader`; `student_trainer` makes its updates.
"""

import time
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tsdfm.pipeline.dataset.manifest import digest
from tsdfm.pipeline.loader.batches import Reader, ReaderSettings
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import (
    EMBEDDED,
    TRAINING_FILE,
    ModelFolder,
    check_target,
    load,
    load_denoiser,
    save,
    state_folder,
    teacher_folder,
)
from tsdfm.pipeline.storage.hub.models import pinned
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.training.loop.checkpoint import refuse_other
from tsdfm.pipeline.training.loop.data_parallel import Place, state_owned
from tsdfm.pipeline.training.loop.trainer import UNWATCHED, Report, Watch
from tsdfm.pipeline.training.student_card import student_card
from tsdfm.pipeline.training.student_trainer import Start, train
from tsdfm.schemas.base import InputError, parse_json
from tsdfm.schemas.corpus import DEFAULT, PYTHON
from tsdfm.schemas.distill import DistillConfig
from tsdfm.schemas.former import replaced, told
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.paths import redacted
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.reports import DistillReport
from tsdfm.schemas.training_record import HeldOutFacts, StudentRecord

# What may differ between a run and its resumption: where things lie, and how the work is divided.
MOVABLE: dict[str, Any] = {"data": {"paths", "loader_workers"}, "init": True, "workers": True, "address": True,
                           "compile": True, "recompute": True, "tracker": True}
LIBRARIES = ("tsdfm-pipeline", "torch", "ray")


def distill(config: DistillConfig, out: Path | str, report: Report = lambda step, scalars: False) -> DistillReport | None:
    """Train, or go on training, a student into the folder `out`, in this process, without Ray.

    Training state and TensorBoard logs stand beside it, in OUT.training, from which a rerun of the same call goes on. torch
    computes with the threads that it has: `optim.threads`, `workers` and `address` are not looked at.

    Args:
        config: what to train on and how.
        out: folder of the student.
        report: called every `optim.log_every` updates with (update, scalars); returning True saves and stops.

    Returns:
        What was made; None if `report` asked to stop.

    Raises:
        InputError: data, weights, objective or `out` don't fit; nothing was changed.
        WorkError: the loss is not finite, say; the last checkpoint is kept.
    """
    folder, last, started = Path(out), dict[str, float](), time.monotonic()
    start = opened(config, folder)
    made = is_made(start, folder)
    if not made:
        check_target(folder)

    def heard(step: int, scalars: dict[str, float]) -> bool:
        last.update(scalars)
        return bool(report(step, scalars))

    if not made and not train_at(Place.alone(), config, folder, heard):
        return None
    return DistillReport(out=str(folder), fingerprint=load(folder).fingerprint, init=start.weights.fingerprint,
                         updates=record_in(folder).updates, seconds=round(time.monotonic() - started, 2), scalars=last)


def record_in(out: Path) -> StudentRecord:
    """How the student in a folder was made. Raises InputError."""
    return parse_json(StudentRecord, read_regular(out / TRAINING_FILE), str(out / TRAINING_FILE))


def check(config: DistillConfig, out: Path) -> Start:
    """Open all that a distillation needs, refuse what could not end well, and make its state folder. Raises InputError."""
    start = opened(config, out)
    check_target(out)
    return start


def is_made(start: Start, out: Path) -> bool:
    """Whether the student in a folder is the one that a distillation would end in, whole: nothing is left to be done.

    Raises InputError or WorkError where the real text that it needs can't be read.
    """
    try:
        record = record_in(out)
        load(out)
    except (InputError, OSError):  # not there, not whole, or something else
        return False
    if made_from(record) != start.identity:
        return False
    return start.real is None or (record.corpus is not None and record.corpus.sha256 == start.real.facts.sha256)


def opened(config: DistillConfig, out: Path, mapper: Mapper = in_order) -> Start:
    """Open all that a distillation into `out` needs; nothing is written. Raises InputError.

    `mapper`: who reads what of the datasets has to be read now.
    """
    start = open_start(config, mapper)
    if out.resolve() == start.weights.path.resolve():
        raise InputError(f"{out}: holds the weights to start from, which the student would replace; give another --out")
    refuse_other(state_folder(out), start.identity)
    return start


def train_at(place: Place, config: DistillConfig, out: Path, report: Report, *, watch: Watch = UNWATCHED) -> bool:
    """One process's part of a distillation; the first process writes the student to `out`.

    Returns False if `report` or `watch` asked to stop. Raises InputError or WorkError.
    """
    with state_owned(out, place) as folder:
        start = replace(open_start(config), progress=watch.progress)
        trained = train(start, folder, place, report, watch.stop)
        if trained is not None and place.rank == 0:
            record, student = record_of(start, trained.held_out), trained.student
            save(out, student, start.weights.vocabulary, record, card=student_card(student.config, record))
    return trained is not None


def open_start(config: DistillConfig, mapper: Mapper = in_order) -> Start:
    """Open a config's datasets and the weights to start from. Raises InputError if they don't fit together."""
    if config.init is not None:
        config = config.model_copy(update={"init": pinned(config.init)})
    config = _with_unread_corpus_as_ever(config)
    reader = open_reader(config, mapper)
    weights = open_init(config, reader.manifests[0])
    return Start(config, reader, weights, identity_of(config, reader, weights))


def _with_unread_corpus_as_ever(config: DistillConfig) -> DistillConfig:
    """Without real text the corpus isn't read, but stands in records: under the name that was the default when they began.

    So a training that was cut, and the trials of a study, are found whatever the default has become since.
    """
    real = config.real
    if real.weight or real.corpus.path != DEFAULT:
        return config
    corpus = real.corpus.model_copy(update={"path": PYTHON})
    return config.model_copy(update={"real": real.model_copy(update={"corpus": corpus})})


def open_reader(config: DistillConfig, mapper: Mapper = in_order) -> Reader:
    """The reader of a config's datasets. Raises InputError."""
    if not config.data.paths:
        raise InputError("--data: no dataset given; give --data OUT (a folder that generate wrote), or data.paths")
    return Reader.open(config.data, ReaderSettings(
        objective=config.objective, beta=config.beta, budgets=config.budgets, batch_size=config.optim.batch_size,
        seed=config.optim.seed), mapper)


def open_init(config: DistillConfig, manifest: DatasetManifest) -> ModelFolder[Denoiser]:
    """The denoiser to start from: `init`, or the manifest's teacher. Raises InputError if it doesn't fit the data."""
    identity = manifest.identity
    if config.init is not None:
        opened = load_denoiser(teacher_folder(config.init, identity.teacher.source))
    else:
        opened = _teacher_of(manifest)
    folder = opened.path
    facts, mine = identity.teacher, opened.network.config
    pairs = [("source", mine.source, facts.source), ("vocab_size", mine.vocab_size, facts.vocab_size),
             ("mask_id", mine.mask_id, facts.mask_id), ("kappa_exponent", mine.kappa_exponent, facts.kappa_exponent),
             ("end_id", mine.end_id, facts.end_id), ("tokenizer", opened.vocabulary.fingerprint, identity.tokenizer)]
    for name, found, wanted in pairs:
        if found != wanted:
            _refuse_former(facts.fingerprint)
            raise InputError(f"--init {folder}: its {name} ({found!s:.16}) is not the dataset's ({wanted!s:.16}); "
                             "give the dataset's teacher, or a student of it")
    if config.init_blocks is not None and mine.masked_lm is not None:
        raise InputError(f"init_blocks: {folder} is a masked language model, all of whose blocks are needed; leave it out")
    if config.init_blocks is not None and config.init_blocks > mine.n_blocks:
        raise InputError(f"init_blocks: {config.init_blocks} is more than the {mine.n_blocks} blocks of {folder}; "
                         "give at most that")
    if identity.rollout.length is not None and mine.length < identity.rollout.length:
        raise InputError(f"--init {folder}: takes {mine.length} tokens, the dataset has {identity.rollout.length}; "
                         "give a longer one")
    return opened


def _teacher_of(manifest: DatasetManifest) -> ModelFolder[Denoiser]:
    wanted = manifest.identity.teacher
    named = manifest.teacher
    for name in dict.fromkeys([EMBEDDED, named or EMBEDDED]):
        with suppress(InputError):  # what else may lie there by now is not asked for
            opened = load_denoiser(teacher_folder(name, wanted.source))
            if opened.fingerprint == wanted.fingerprint:
                return opened
    _refuse_former(wanted.fingerprint)
    raise InputError(f"--init: the dataset's teacher ({named or 'unnamed'}, fingerprint {wanted.fingerprint[:12]}) is not on "
                     "this machine any more; give --init FOLDER with a copy of it")


def _refuse_former(teacher: str) -> None:
    """Raises InputError where a dataset's teacher, by fingerprint, shipped with a former version of this package."""
    models = replaced(teacher)
    if models:
        raise InputError(f"--init: the dataset's teacher ({teacher[:12]}) is {told(models)}; distil with that version, give a "
                         "copy of what lies there as --init FOLDER, or make the dataset anew")


def identity_of(config: DistillConfig, reader: Reader, start: ModelFolder[Denoiser]) -> dict[str, Any]:
    """All that a student's bits depend on, but for real text and libraries; plain JSON."""
    resolved = config.model_copy(update={"budgets": reader.budget_shares})
    return _identity(resolved, start.fingerprint, [digest(manifest.identity) for manifest in reader.manifests])


def made_from(record: StudentRecord) -> dict[str, Any]:
    """`identity_of` what a student says that it was made from."""
    return _identity(record.config, record.init, [each.identity for each in record.data.datasets])


def _identity(config: DistillConfig, init: str, datasets: list[str]) -> dict[str, Any]:
    """Of a config whose budgets are resolved, the fingerprint of the weights to start from, and digests of datasets."""
    return {**config.model_dump(mode="json", exclude=MOVABLE), "init": init, "datasets": datasets}


def record_of(start: Start, held_out: HeldOutFacts | None = None) -> StudentRecord:
    """How a student was made, for its training.json and its card: where data lies, but not the secrets that open it."""
    resolved = start.config.model_copy(update={"budgets": start.reader.budget_shares})
    data = resolved.data.model_copy(update={"paths": [redacted(path) for path in resolved.data.paths]})
    return StudentRecord(config=resolved.model_copy(update={"data": data}), data=start.reader.facts(),
                         init=start.weights.fingerprint, corpus=None if start.real is None else start.real.facts,
                         held_out=held_out, versions={name: version(name) for name in LIBRARIES})
