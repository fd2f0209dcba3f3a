"""Verify a dataset: every file against the manifest, every row against the invariants of the jump log."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import pyarrow as pa

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.card import is_card_of
from tsdfm.pipeline.dataset.files.blocks import BlockRows
from tsdfm.pipeline.dataset.files.check import RowFault, check_groups
from tsdfm.pipeline.dataset.files.given import OTHER, GivenRows
from tsdfm.pipeline.dataset.files.tally import FileTally, Tally
from tsdfm.pipeline.dataset.manifest import CARD_FILE, ShardPlan, plan, read_manifest, read_vocabulary
from tsdfm.pipeline.dataset.summary import summary_of
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.once import ReadOnce
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.ends.written import text_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, one_line
from tsdfm.schemas.manifest import DatasetManifest, ShardRecord
from tsdfm.schemas.progress import Progress, unheard
from tsdfm.schemas.summary import DatasetSummary
from tsdfm.schemas.words import count


@dataclass(frozen=True)
class DatasetFault:
    """One fault: a file of the dataset, a row of it (None: the whole file), and what is wrong."""

    path: str
    row: int | None
    what: str

    def __str__(self) -> str:
        where = self.path if self.row is None else f"{self.path}: row {self.row}"
        return one_line(f"{where}: {self.what}")


def verify(dataset: Store | str, progress: Progress = unheard, mapper: Mapper = in_order
           ) -> tuple[DatasetManifest, list[DatasetFault]]:
    """Check a finished dataset, by name or opened: every file against the manifest, every row against the invariants.

    `mapper`: who checks the files; threads of this process, unless another is given.

    Returns the manifest and all faults, none for a sound dataset.

    Raises InputError if there is no dataset, or its manifest can't be read.
    """
    store = open_store(dataset) if isinstance(dataset, str) else dataset
    manifest, faults = _begun(store)
    given: list[GivenRows | None] = []
    for found, rows in _examined(_FileCheck(store, _heading(manifest)), manifest, progress, mapper):
        faults += found
        given.append(rows)
    return manifest, [*faults, *_prompt_faults(manifest, given)]


def verify_and_summarise(store: Store, progress: Progress = unheard, mapper: Mapper = in_order
                         ) -> tuple[DatasetManifest, list[DatasetFault], DatasetSummary]:
    """`verify` and `summarise` in one: files are read once. The summary is worth nothing where there are faults."""
    manifest, faults = _begun(store)
    total, given = Tally(manifest.identity), list[GivenRows | None]()
    for found, rows, tally in _examined(_FileSum(store, _heading(manifest)), manifest, progress, mapper):
        faults += found
        given.append(rows)
        total.merge(tally)
    return manifest, [*faults, *_prompt_faults(manifest, given)], summary_of(manifest, total)


def _begun(store: Store) -> tuple[DatasetManifest, list[DatasetFault]]:
    """The manifest, and what is wrong with all but the shards."""
    manifest = read_manifest(store)
    faults = list(_manifest_faults(store, manifest))
    try:
        read_vocabulary(store, manifest)
    except InputError as error:
        faults.append(DatasetFault("tokenizer.json", None, str(error).partition(": ")[2]))
    return manifest, faults


def _heading(manifest: DatasetManifest) -> DatasetManifest:
    """A manifest that does not name every file, and so stays small on its way."""
    return manifest.model_copy(update={"shards": manifest.shards[:1]})


Given = tuple[ShardPlan, ShardRecord | None]  # a file, and what is on record of it
R = TypeVar("R")


def _examined(examine: Callable[[Given], R], manifest: DatasetManifest, progress: Progress, mapper: Mapper) -> Iterator[R]:
    """What is found of each file, in order."""
    records = {record.path: record for record in manifest.shards}
    given = [(item, records.get(item.path)) for item in plan(manifest.identity)]
    for done, found in enumerate(mapper(examine, given), 1):
        yield found
        progress("checking shards", done, len(given))


class _File:
    """A look at one file of a dataset, wherever it is taken: the tokenizer is opened once where this arrives."""

    def __init__(self, store: Store, manifest: DatasetManifest) -> None:
        self.store, self.manifest = store, manifest

    @cached_property
    def _vocabulary(self) -> Vocabulary | None:
        try:
            return read_vocabulary(self.store, self.manifest)
        except InputError:
            return None  # which has been told

    def look(self, given: Given, tally: FileTally | None) -> tuple[list[DatasetFault], GivenRows | None]:
        """The faults of a file, and what its rows were given: None where no prompts are, or the file is faulty.

        The rows of a sound one are added to `tally`.
        """
        item, record = given
        if record is None:
            return [DatasetFault(item.path, None, "not in the manifest")], None
        file = self.store.open(item.path)
        if file is None:
            return [DatasetFault(item.path, None, "missing")], None
        rows = GivenRows.of(self.manifest.identity)
        with file:
            once = ReadOnce(file)
            found = list(self._faults(once, record, item, rows, tally))
        if tally is not None and not found:
            tally.columns = shards.column_bytes(once.file, item.path)
        return [DatasetFault(item.path, row, what) for row, what in found], None if found else rows

    def _faults(self, once: ReadOnce, record: ShardRecord, item: ShardPlan, given: GivenRows | None,
                tally: FileTally | None) -> Iterator[RowFault]:
        """Faults (row, what) of one file; texts and what was given are looked at only if all else so far is sound."""
        identity, found, texts = self.manifest.identity, list[RowFault](), list[RowFault]()
        rows, unreadable = 0, ""
        parts = [part for part in (given, BlockRows.of(identity)) if part is not None]
        try:
            for first, table in check_groups(once.file, item, identity, found):
                rows += table.num_rows
                if self._vocabulary is not None and not found:
                    texts += _text_faults(first, table, self._vocabulary, identity.teacher.end_id)
                if not found:
                    texts += [(first + row, what) for part in parts for row, what in part.add(table)]
                if tally is not None and not found:
                    tally.add(table)
        except InputError as error:
            unreadable = str(error).partition(": ")[2]
        if once.size != record.bytes:
            yield None, f"{count(once.size, 'byte')}, the manifest says {record.bytes}"
        elif once.sha256() != record.sha256:
            yield None, "checksum differs from the manifest's"
        if unreadable:
            yield None, unreadable
            return
        if rows != record.rows:
            yield None, f"{count(rows, 'row')}, the manifest says {record.rows}"
        yield from found or texts

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.store, self.manifest)


class _FileCheck(_File):
    """The faults of a file, and what its rows were given."""

    def __call__(self, given: Given) -> tuple[list[DatasetFault], GivenRows | None]:
        return self.look(given, None)


class _FileSum(_File):
    """The same and the file's sums, in one reading."""

    def __call__(self, given: Given) -> tuple[list[DatasetFault], GivenRows | None, FileTally]:
        tally = FileTally(self.manifest.identity, given[0].start)
        return *self.look(given, tally), tally


def _text_faults(first: int, table: pa.Table, vocabulary: Vocabulary, end_id: int | None) -> Iterator[RowFault]:
    """Rows whose text is another than their tokens' (up to the end, if they have one); the table's begin at row `first`."""
    texts, tokens = table.column("text").to_pylist(), table.column("tokens").to_pylist()
    for row in range(table.num_rows):
        if text_of(vocabulary, tokens[row], end_id) != texts[row]:
            yield first + row, "text is not the decoded tokens"


def _prompt_faults(manifest: DatasetManifest, given: Sequence[GivenRows | None]) -> Iterator[DatasetFault]:
    """Faults of the prompts of all files together, `given` in order; none is looked for where a file has been found faulty."""
    prompts, total = manifest.identity.prompts, GivenRows.of(manifest.identity)
    if prompts is None or total is None:
        return
    for item, rows in zip(plan(manifest.identity), given, strict=True):
        if rows is None:
            return
        if not total.merge(rows):
            yield DatasetFault(item.path, 0, OTHER)
            return
    if total.digest() != prompts.sha256:
        yield DatasetFault("manifest.json", None, "identity.prompts.sha256 is not that of the fixed tokens in the rows")


def _manifest_faults(store: Store, manifest: DatasetManifest) -> Iterator[DatasetFault]:
    planned = {item.path for item in plan(manifest.identity)}
    for record in manifest.shards:
        if record.path not in planned:
            yield DatasetFault("manifest.json", None, f"shard {record.path} is not in the plan of its config")
    for path in sorted(store.below("data") - planned):
        yield DatasetFault(path, None, "not part of the dataset; remove it")
    card = store.read(CARD_FILE)
    if card is None:
        yield DatasetFault(CARD_FILE, None, "missing; run generate again to write it")
    elif not is_card_of(card, manifest.identity):
        yield DatasetFault(CARD_FILE, None, "its YAML head was changed, so load_dataset may not find the shards")
