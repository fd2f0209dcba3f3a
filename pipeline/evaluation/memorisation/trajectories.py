"""The final texts of trajectories as n-grams, and which trajectories a student learnt from, by its training record."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from tsdfm.pipeline.dataset.manifest import digest, read_manifest
from tsdfm.pipeline.evaluation.memorisation.grams import GRAM, Hashes, gram_hashes
from tsdfm.pipeline.evaluation.sample_cache import Identity, key_of
from tsdfm.pipeline.loader.streams import OpenDataset
from tsdfm.pipeline.models.denoiser import Denoiser
from tsdfm.pipeline.models.folder import TRAINING_FILE, ModelFolder
from tsdfm.pipeline.storage.open_store import is_here, open_store
from tsdfm.pipeline.text.ends.written import lengths
from tsdfm.schemas.base import InputError, WorkError
from tsdfm.schemas.distill import DataConfig
from tsdfm.schemas.manifest import DatasetManifest
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.regular import read_regular
from tsdfm.schemas.training_record import DatasetFacts, StudentRecord

FLAG = "--trajectories-of"


@dataclass(frozen=True)
class FinalTexts:
    """See `grams.Place`: the texts at t = 1 of some trajectories, each by itself, up to its end where it has one."""

    sources: tuple[OpenDataset, ...]

    @cached_property
    def identity(self) -> Identity:
        """See `Place.identity`."""
        return {"trajectories": [_identity(source) for source in self.sources], "gram": GRAM}

    @property
    def name(self) -> str:
        """See `Place.name`."""
        return key_of(self.identity)

    def hashes(self, progress: Progress = unheard) -> Iterator[Hashes]:
        """See `Place.hashes`; `progress` hears of the trajectories."""
        done, rows = 0, sum(int(source.rows_of_shard.sum()) for source in self.sources)
        for source in self.sources:
            end_id = source.manifest.identity.teacher.end_id
            for tokens in source.final_texts():
                yield _grams_of(tokens, end_id)
                done += len(tokens)
                progress("looking for the texts in the trajectories", done, rows, "trajectories")


def _grams_of(tokens: npt.NDArray[np.int32], end_id: int | None) -> Hashes:
    """The n-grams of texts [n, L], up to their ends, flat."""
    hashes = gram_hashes(tokens)
    if end_id is None:
        return hashes.ravel()
    found: Hashes = hashes[np.arange(hashes.shape[1]) + GRAM <= lengths(tokens, end_id)[:, None]]
    return found


def _identity(source: OpenDataset) -> dict[str, object]:
    """Which rows of which files."""
    files = " ".join(record.sha256 for _, record in source.shards)
    chosen = b"" if source.row_filter is None else b" ".join(rows.tobytes() for rows in source.row_filter.rows)
    return {"files": hashlib.sha256(files.encode()).hexdigest(), "arm": source.arm, "ids": source.ids.stop,
            **({"chosen": hashlib.sha256(chosen).hexdigest()} if chosen else {})}


@dataclass(frozen=True)
class Learnt:
    """Where texts are looked for: those of a student in its own trajectories, others, by vocabulary, in all that were named."""

    own: dict[str, FinalTexts] = field(default_factory=dict)
    named: dict[str, FinalTexts] = field(default_factory=dict)
    students: frozenset[str] = frozenset()
    remarks: tuple[str, ...] = ()  # of students whose trajectories are not looked at

    def of(self, model: str | None, vocabulary: str) -> FinalTexts | None:
        """Where the texts of a model, or of no model, are looked for; `vocabulary`: fingerprint of their tokenizer."""
        return self.own.get(model or "") if model in self.students else self.named.get(vocabulary)


def learnt_by(models: Mapping[str, ModelFolder[Denoiser]], names: Sequence[str]) -> Learnt:
    """What some models, by name, learnt from, of which `names` are datasets that lie elsewhere than their records say.

    Raises InputError (or WorkError, where a store can't be reached): a dataset that was named is not there, or no student's.
    """
    records = {name: record for name, opened in models.items() if (record := _record_of(opened)) is not None}
    manifests = {name: read_manifest(open_store(name)) for name in names}
    _refuse_foreign(manifests, models, records)
    own, remarks = dict[str, FinalTexts](), list[str]()
    for name, record in records.items():
        try:
            own[name] = FinalTexts(tuple(_find(facts, record, manifests) for facts in record.data.datasets))
        except (InputError, WorkError) as error:
            remarks.append(f"{name}: its texts are not looked for in the trajectories that it learnt from: {error}")
    for name in models.keys() - records.keys():
        if models[name].network.config.step_size and not names:
            remarks.append(f"{name}: its texts are not looked for in trajectories: it is a student, and its {TRAINING_FILE} "
                           f"names no dataset; {FLAG} says in which to look")
    return Learnt(own, _all_of(manifests), frozenset(records), tuple(remarks))


def _record_of(opened: ModelFolder[Denoiser]) -> StudentRecord | None:
    """The record of a student of `distill`; None: it is no such student, or does not say."""
    try:
        return StudentRecord.model_validate_json(read_regular(opened.path / TRAINING_FILE))
    except (OSError, InputError, ValidationError):
        return None


def _refuse_foreign(manifests: Mapping[str, DatasetManifest], models: Mapping[str, ModelFolder[Denoiser]],
                    records: Mapping[str, StudentRecord]) -> None:
    """Raises InputError where a dataset that was named belongs to no student, if there are any, or to no model."""
    facts = [each for record in records.values() for each in record.data.datasets]
    for name, manifest in manifests.items():
        if facts and not any(_size(manifest, each) for each in facts):
            learnt = ", ".join(sorted({each.path for each in facts}))
            raise InputError(f"{FLAG} {name}: no student here learnt from it (they learnt from {learnt}); give that, or leave "
                             "it out")
        if manifest.identity.tokenizer not in {opened.vocabulary.fingerprint for opened in models.values()}:
            raise InputError(f"{FLAG} {name}: its tokens are of another tokenizer than those of every model here; give a "
                             "dataset of theirs, or leave it out")


def _find(facts: DatasetFacts, record: StudentRecord, named: Mapping[str, DatasetManifest]) -> OpenDataset:
    """What a student learnt from of one of its datasets: among those that were named, or where its record says.

    Raises InputError or WorkError: it is not there, or can't be read.
    """
    for name, manifest in named.items():
        size = _size(manifest, facts)
        if size is not None:
            return _opened(name, record, size)
    if not is_here(facts.uri):
        raise InputError(f"{facts.uri} is on another machine; {FLAG} {facts.uri} has it read")
    elsewhere = f"{FLAG} says where it lies now"
    try:
        manifest = read_manifest(open_store(facts.path))
    except (InputError, WorkError):
        raise InputError(f"{facts.path} is not there any more; {elsewhere}") from None
    size = _size(manifest, facts)
    if size is None:
        raise InputError(f"at {facts.path} lies another dataset now; {elsewhere}")
    return _opened(facts.path, record, size)


def _opened(name: str, record: StudentRecord, size: int) -> OpenDataset:
    data = record.config.data
    limit = size if data.trajectories is None else min(size, data.trajectories)
    return OpenDataset.open(name, data.model_copy(update={"trajectories": limit}))


def _size(manifest: DatasetManifest, facts: DatasetFacts) -> int | None:
    """How many trajectories a dataset had when a student learnt from it, for it may have grown; None: it is another one."""
    if digest(manifest.identity) == facts.identity:
        return manifest.identity.trajectories
    for former in reversed(manifest.history):  # which had fewer prompts: their digest is only in the student's record
        before = {"trajectories": former.trajectories, "prompts": facts.prompts}
        if digest(manifest.identity.model_copy(update=before)) == facts.identity:
            return former.trajectories
    return None


def _all_of(manifests: Mapping[str, DatasetManifest]) -> dict[str, FinalTexts]:
    """Every row of the datasets that were named, by vocabulary."""
    sources: dict[str, list[OpenDataset]] = {}
    for name, manifest in manifests.items():
        identity = manifest.identity
        sources.setdefault(identity.tokenizer, []).extend(OpenDataset.open(name, DataConfig(arm=arm)) for arm in identity.arms)
    return {vocabulary: FinalTexts(tuple(each)) for vocabulary, each in sources.items()}
