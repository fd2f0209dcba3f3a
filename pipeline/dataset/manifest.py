"""A dataset on disk: its plan, its state while it is made, its manifest and card, and how it is read.

    OUT/README.md  manifest.json  tokenizer.json  data/train-00000-of-00008.parquet ...

While it is made, `.run.json` holds the identity of the run, and `.receipts/` a receipt for every finished shard; the manifest
is written last and replaces both. Where a file holds several units of work, `.parts/` holds those that are made until all of a
file are (see `parts`).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
from pydantic import ValidationError

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.card import dataset_card, is_card_of
from tsdfm.pipeline.storage.locks import LOCK_FILE
from tsdfm.pipeline.storage.once import ReadOnce
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.tokenizer_file import parse_tokenizer
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import EVERY_FIELD, InputError, differences, first_line, parse_json, plain_json
from tsdfm.schemas.columns import values
from tsdfm.schemas.former import replaced, told
from tsdfm.schemas.manifest import FILES_A_FOLDER, DatasetManifest, FormerDataset, Identity, ShardRecord, Totals

MANIFEST_FILE, CARD_FILE, RUN_FILE = "manifest.json", "README.md", ".run.json"
RECEIPTS = ".receipts"  # folder of what is known of finished shards until the manifest is
PARTS = ".parts"  # folder of units of work that wait for the others of their file
LIBRARIES = ("tsdfm-pipeline", "torch", "pyarrow", "tokenizers", "ray")


@dataclass(frozen=True)
class ShardPlan:
    """A file, and the trajectory ids start..stop-1 that it holds, in every arm."""

    path: str
    start: int
    stop: int


def plan(identity: Identity) -> list[ShardPlan]:
    """All files of a dataset, in order; the last may be short. Of more than FILES_A_FOLDER, so many lie in a folder."""
    return [file_at(identity, index) for index in range(identity.files)]


def file_at(identity: Identity, index: int) -> ShardPlan:
    """One file of `plan`."""
    size = identity.trajectories_per_file
    folder = f"data/{index // FILES_A_FOLDER:03d}" if identity.foldered else "data"
    return ShardPlan(f"{folder}/train-{index:05d}-of-{identity.files:05d}.parquet", index * size,
                     min((index + 1) * size, identity.trajectories))


def folders(paths: Iterable[str]) -> list[str]:
    """The folders that these files lie in, each once, sorted."""
    return sorted({path.rpartition("/")[0] for path in paths})


def digest(identity: Identity) -> str:
    """sha256 of the canonical JSON of an identity, hex."""
    canonical = json.dumps(identity.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def claim(store: Store, identity: Identity, prompts: str | None = None) -> None:
    """Mark a folder as this identity's run. Raises InputError if it holds another dataset's run, or something else.

    `prompts`: the file that the identity's prompts were read from, which messages name.
    """
    if not may_claim(store, identity, prompts):
        store.write(RUN_FILE, (json.dumps(identity.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode())


def may_claim(store: Store, identity: Identity, prompts: str | None = None) -> bool:
    """Whether a folder is marked as this identity's run already; False: it is empty. Raises InputError as `claim` does."""
    names = {name for name in store.names() if not name.startswith(LOCK_FILE)}
    for file in (MANIFEST_FILE, RUN_FILE):
        held = store.read(file)
        if held is None:
            continue
        try:
            found = plain_json(held, f"{store.uri}/{file}")
            old = found["identity"] if file == MANIFEST_FILE else found
        except (InputError, KeyError, TypeError):
            raise InputError(f"{store.uri}/{file}: not readable; restore it, or give another --out") from None
        differing = _differing(old, identity)
        models = replaced(old, identity.model_dump(mode="json")) if differing else []
        if models:
            rest = [each for each in differing if not each.startswith(("teacher.", "compass", "tokenizer"))]
            raise InputError(f"{store.uri}: was made with {told(models)}; go on with that version, give copies of what lies "
                             "there (--teacher, --compass), or make it anew with another --out"
                             + ("; besides, make these equal: " + "; ".join(rest) if rest else ""))
        if differing:
            others = any(each.startswith("prompts") for each in differing)
            whose = f" (the prompts here are those of {prompts})" if others and prompts else ""
            raise InputError(f"{store.uri}: holds a dataset of another config; give another --out, or make these equal: "
                             + "; ".join(differing) + whose)
        return True
    if names:
        raise InputError(f"{store.uri}: holds files and no dataset ({', '.join(sorted(names)[:3])}); give an empty --out")
    return False


def _differing(old: object, identity: Identity) -> list[str]:
    """The fields in which the identity in a file differs, with both values; what older files leave out has its default."""
    try:
        whole = Identity.model_validate(old).model_dump(mode="json", context=EVERY_FIELD)
    except ValidationError:
        return differences(old, identity.model_dump(mode="json"))
    return differences(whole, identity.model_dump(mode="json", context=EVERY_FIELD))


def is_claimed(store: Store, identity: Identity) -> bool:
    """Whether a folder is marked as this identity's run, or holds its dataset: what `claim` left there."""
    for file in (RUN_FILE, MANIFEST_FILE):
        held = store.read(file)
        if held is not None:
            found = json.loads(held)
            if not differences(found if file == RUN_FILE else found["identity"], identity.model_dump(mode="json")):
                return True
    return False


@dataclass(frozen=True)
class Finished:
    """A shard that is written: its record, and how many events it holds."""

    record: ShardRecord
    events: int


def finished(path: str, data: bytes, table: pa.Table) -> Finished:
    """What the manifest needs to know of a shard's bytes and table."""
    record = ShardRecord(path=path, rows=table.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return Finished(record, len(values(table, "event_step")))


def on_record(store: Store, record: ShardRecord | None) -> Finished | None:
    """A shard that is there, and whose bytes hash to what is on record in a manifest; None if it must be made.

    It is read in full, for it may have been damaged since, and not decoded.
    """
    file = None if record is None else store.open(record.path)
    if record is None or file is None:
        return None
    with file:
        once = ReadOnce(file)
        if once.sha256() != record.sha256:
            return None
        try:
            return Finished(record, shards.count_events(once.file, record.path))
        except InputError:
            return None


def commit(
    store: Store, identity: Identity, done: list[Finished], vocabulary: Vocabulary, teacher: str | None = None,
    history: Sequence[FormerDataset] = (),
) -> DatasetManifest:
    """Write tokenizer, card and, last of all, the manifest; where no row was made since it was written, only what is amiss.

    `done` must cover the plan, in order; `teacher`: where it was; `history`: what the dataset was before it grew.
    """
    records = [shard.record for shard in done]
    if [record.path for record in records] != [item.path for item in plan(identity)]:
        raise ValueError("commit needs one finished shard per planned one, in order")
    rows = sum(record.rows for record in records)
    old = None if store.read(MANIFEST_FILE) is None else read_manifest(store)
    kept = old if old is not None and old.shards == records else None  # no row has been made since
    manifest = DatasetManifest(
        format_version=identity.format_version, identity=identity, time_grid=list(identity.rollout.times),
        shaped_steps=list(identity.grid.shaped_steps), token_steps=list(identity.grid.token_steps), shards=records,
        totals=Totals(rows=rows, events=sum(shard.events for shard in done), tokens=rows * (identity.rollout.length or 0),
                      bytes=sum(record.bytes for record in records)),
        teacher=teacher, versions={name: version(name) for name in LIBRARIES} if kept is None else kept.versions,
        history=list(history))
    if store.read(TOKENIZER_FILE) != vocabulary.to_json().encode():
        store.write(TOKENIZER_FILE, vocabulary.to_json().encode())
    if kept is None or not is_card_of(store.read(CARD_FILE), identity):
        store.write(CARD_FILE, dataset_card(manifest).encode())
    if manifest != kept:
        store.write(MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    store.remove(RUN_FILE)
    for path in sorted(store.below(PARTS) | store.below(RECEIPTS)):
        store.remove(path)
    return manifest


def read_manifest(store: Store) -> DatasetManifest:
    """Open a finished dataset. Raises InputError if there is none, or its manifest is wrong."""
    data = store.read(MANIFEST_FILE)
    if data is not None:
        return parse_json(DatasetManifest, data, f"{store.uri}/{MANIFEST_FILE}")
    if store.read(RUN_FILE) is not None:
        raise InputError(f"{store.uri}: this dataset is unfinished; run its generate command again to resume it")
    raise InputError(f"{store.uri}: no dataset there (no {MANIFEST_FILE}); give the folder that generate wrote")


def read_shard_bytes(store: Store, record: ShardRecord) -> bytes:
    """The Parquet bytes of one shard, their checksum checked. Raises InputError."""
    data = store.read(record.path)
    where = f"{store.uri}/{record.path}"
    if data is None:
        raise InputError(f"{where}: this shard is missing; restore it, or run generate again to remake it")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise _changed(where)
    return data


@contextmanager
def opened_shard(store: Store, record: ShardRecord) -> Iterator[ReadOnce]:
    """One shard, to be decoded while its bytes go by; once that is done, their checksum is compared. They are not held.

    So what was decoded counts only once this has ended, or after `check_sum`. Raises InputError: the shard is missing, or was
    changed, whatever decoding it has raised.
    """
    where, file = f"{store.uri}/{record.path}", store.open(record.path)
    if file is None:
        raise InputError(f"{where}: this shard is missing; restore it, or run generate again to remake it")
    with file:
        once = ReadOnce(file)
        if once.size != record.bytes:
            raise _changed(where)
        try:
            yield once
        except InputError:
            check_sum(once, record, where)
            raise
        check_sum(once, record, where)


def check_sum(once: ReadOnce, record: ShardRecord, where: str) -> None:
    """Read what is left of a shard. Raises InputError if its bytes are not those on record."""
    if once.sha256() != record.sha256:
        raise _changed(where)


def _changed(where: str) -> InputError:
    return InputError(f"{where}: its bytes differ from the manifest's checksum; restore it, or run generate again")


def known_groups(store: Store, record: ShardRecord, identity: Identity) -> Iterator[pa.Table]:
    """The row groups of one shard, sound, for whoever uses each at once: the file is hashed first, and then read again.

    Raises InputError, naming the first fault.
    """
    with opened_shard(store, record) as once:
        check_sum(once, record, f"{store.uri}/{record.path}")
        yield from shards.sound_groups(once.file, f"{store.uri}/{record.path}", record.rows, identity.grid)


def read_shard(store: Store, record: ShardRecord) -> pa.Table:
    """The table of one shard, its checksum checked. Raises InputError."""
    return shards.decode(read_shard_bytes(store, record), f"{store.uri}/{record.path}")[0]


def read_vocabulary(store: Store, manifest: DatasetManifest) -> Vocabulary:
    """The dataset's own tokenizer, its fingerprint checked. Raises InputError."""
    data = store.read(TOKENIZER_FILE)
    where = f"{store.uri}/{TOKENIZER_FILE}"
    if data is None:
        raise InputError(f"{where}: missing; restore it, or run generate again")
    if hashlib.sha256(data).hexdigest() != manifest.identity.tokenizer:  # before it is parsed: it may be anything
        raise InputError(f"{where}: not the tokenizer that the manifest names; restore it, or run generate again")
    try:
        return Vocabulary(parse_tokenizer(data, where), where)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: not a tokenizer ({first_line(error)}); restore it, or run generate again") from None
