"""Verify a dataset: every file against the manifest, every row against the invariants of the jump log."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tsdfm.pipeline.dataset.card import DEFAULT_CONFIG, read_front_matter
from tsdfm.pipeline.dataset.manifest import CARD_FILE, ShardPlan, check_bytes, plan, read_manifest, read_vocabulary
from tsdfm.pipeline.storage.in_order import in_order
from tsdfm.pipeline.storage.open_store import open_store
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
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
        return f"{where}: {self.what}"


def verify(dataset: Store | str, progress: Progress = unheard) -> tuple[DatasetManifest, list[DatasetFault]]:
    """Check a finished dataset, by name or opened: every file against the manifest, every row against the invariants.

    Returns the manifest and all faults, none for a sound dataset.

    Raises InputError if there is no dataset, or its manifest can't be read.
    """
    store = open_store(dataset) if isinstance(dataset, str) else dataset
    manifest = read_manifest(store)
    faults = list(_manifest_faults(store, manifest))
    by_path = {record.path: record for record in manifest.shards}
    items = plan(manifest.identity)
    vocabulary = None
    try:
        vocabulary = read_vocabulary(store, manifest)
    except InputError as error:
        faults.append(DatasetFault("tokenizer.json", None, str(error).partition(": ")[2]))
    def faults_of(item: ShardPlan) -> list[DatasetFault]:
        return list(_file_faults(store, by_path.get(item.path), item, manifest.identity, vocabulary))

    for done, found in enumerate(in_order(faults_of, items), 1):
        faults += found
        progress("checking shards", done, len(items))
    return manifest, faults


def _file_faults(
    store: Store, record: ShardRecord | None, item: ShardPlan, identity: Identity, vocabulary: Vocabulary | None
) -> Iterator[DatasetFault]:
    if record is None:
        yield DatasetFault(item.path, None, "not in the manifest")
        return
    data = store.read(item.path)
    if data is None:
        yield DatasetFault(item.path, None, "missing")
        return
    for row, what in _shard_faults(data, record, item, identity, vocabulary):
        yield DatasetFault(item.path, row, what)


def _shard_faults(
    data: bytes, record: ShardRecord, item: ShardPlan, identity: Identity, vocabulary: Vocabulary | None
) -> Iterator[tuple[int | None, str]]:
    """Faults (row, what) of one shard's bytes; its texts are compared only if there is a vocabulary and all else is sound."""
    if len(data) != record.bytes:
        yield None, f"{count(len(data), 'byte')}, the manifest says {record.bytes}"
    elif hashlib.sha256(data).hexdigest() != record.sha256:
        yield None, "checksum differs from the manifest's"
    try:
        table, found = check_bytes(data, item, identity)
    except InputError as error:
        yield None, str(error).partition(": ")[2]
        return
    if table.num_rows != record.rows:
        yield None, f"{count(table.num_rows, 'row')}, the manifest says {record.rows}"
    yield from found
    if vocabulary is not None and not found:
        texts, tokens = table.column("text").to_pylist(), table.column("tokens").to_pylist()
        for row in range(table.num_rows):
            if vocabulary.decode(tokens[row]) != texts[row]:
                yield row, "text is not the decoded tokens"


def _manifest_faults(store: Store, manifest: DatasetManifest) -> Iterator[DatasetFault]:
    planned = {item.path for item in plan(manifest.identity)}
    for record in manifest.shards:
        if record.path not in planned:
            yield DatasetFault("manifest.json", None, f"shard {record.path} is not in the plan of its config")
    for name in store.names("data"):
        if f"data/{name}" not in planned:
            yield DatasetFault(f"data/{name}", None, "not part of the dataset; remove it")
    card = store.read(CARD_FILE)
    if card is None:
        yield DatasetFault(CARD_FILE, None, "missing; run generate again to write it")
    elif DEFAULT_CONFIG not in (read_front_matter(card.decode(errors="replace")).get("configs") or []):
        yield DatasetFault(CARD_FILE, None, "its YAML head was changed, so load_dataset may not find the shards")
