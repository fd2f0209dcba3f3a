"""Verify a dataset: every file against the manifest, every row against the invariants of the jump log."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from tsdfm.pipeline.dataset.card import default_config, read_front_matter
from tsdfm.pipeline.dataset.files.check import RowFault, check_groups
from tsdfm.pipeline.dataset.manifest import CARD_FILE, ShardPlan, plan, read_manifest, read_vocabulary, sha256_of
from tsdfm.pipeline.storage.in_order import Mapper, in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.ends.written import text_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, one_line
from tsdfm.schemas.manifest import DatasetManifest, Identity, ShardRecord
from tsdfm.schemas.progress import Progress, unheard
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
    manifest = read_manifest(store)
    faults = list(_manifest_faults(store, manifest))
    by_path = {record.path: record for record in manifest.shards}
    items = plan(manifest.identity)
    try:
        read_vocabulary(store, manifest)
    except InputError as error:
        faults.append(DatasetFault("tokenizer.json", None, str(error).partition(": ")[2]))
    check = _FileCheck(store.address, manifest.model_copy(update={"shards": manifest.shards[:1]}))
    for done, found in enumerate(mapper(check, [(item, by_path.get(item.path)) for item in items]), 1):
        faults += found
        progress("checking shards", done, len(items))
    return manifest, faults


class _FileCheck:
    """The check of one file of a dataset, wherever it is run: it opens the store, and the tokenizer, once where it arrives.

    `manifest` need not name every file, and so stays small on its way.
    """

    def __init__(self, address: str, manifest: DatasetManifest) -> None:
        self.address, self.manifest = address, manifest

    @cached_property
    def _opened(self) -> tuple[Store, Vocabulary | None]:
        store = open_store(self.address)
        try:
            return store, read_vocabulary(store, self.manifest)
        except InputError:
            return store, None  # which has been told

    def __call__(self, given: tuple[ShardPlan, ShardRecord | None]) -> list[DatasetFault]:
        item, record = given
        store, vocabulary = self._opened
        return list(_file_faults(store, record, item, self.manifest.identity, vocabulary))

    def __reduce__(self) -> tuple[Any, ...]:
        return _FileCheck, (self.address, self.manifest)


def _file_faults(
    store: Store, record: ShardRecord | None, item: ShardPlan, identity: Identity, vocabulary: Vocabulary | None
) -> Iterator[DatasetFault]:
    if record is None:
        yield DatasetFault(item.path, None, "not in the manifest")
        return
    file = store.open(item.path)
    if file is None:
        yield DatasetFault(item.path, None, "missing")
        return
    with file:
        for row, what in _shard_faults(file, record, item, identity, vocabulary):
            yield DatasetFault(item.path, row, what)


def _shard_faults(
    file: pa.NativeFile, record: ShardRecord, item: ShardPlan, identity: Identity, vocabulary: Vocabulary | None
) -> Iterator[RowFault]:
    """Faults (row, what) of one shard; its texts are compared only if there is a vocabulary and all else so far is sound."""
    size = file.size()
    if size != record.bytes:
        yield None, f"{count(size, 'byte')}, the manifest says {record.bytes}"
    elif sha256_of(file) != record.sha256:
        yield None, "checksum differs from the manifest's"
    found: list[RowFault] = []
    texts: list[RowFault] = []
    rows = 0
    try:
        for first, table in check_groups(file, item, identity, found):
            rows += table.num_rows
            if vocabulary is not None and not found:
                texts += _text_faults(first, table, vocabulary, identity.teacher.end_id)
    except InputError as error:
        yield None, str(error).partition(": ")[2]
        return
    if rows != record.rows:
        yield None, f"{count(rows, 'row')}, the manifest says {record.rows}"
    yield from found or texts


def _text_faults(first: int, table: pa.Table, vocabulary: Vocabulary, end_id: int | None) -> Iterator[RowFault]:
    """Rows whose text is another than their tokens' (up to the end, if they have one); the table's begin at row `first`."""
    texts, tokens = table.column("text").to_pylist(), table.column("tokens").to_pylist()
    for row in range(table.num_rows):
        if text_of(vocabulary, tokens[row], end_id) != texts[row]:
            yield first + row, "text is not the decoded tokens"


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
    elif default_config(manifest.identity) not in (read_front_matter(card.decode(errors="replace")).get("configs") or []):
        yield DatasetFault(CARD_FILE, None, "its YAML head was changed, so load_dataset may not find the shards")
