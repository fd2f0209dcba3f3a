"""A dataset on disk: its plan, its state while it is made, its manifest and card, and how it is read.

    OUT/README.md  manifest.json  tokenizer.json  data/train-00000-of-00008.parquet ...

While it is made, `.run.json` holds the identity of the run, and `.receipts/` a receipt for every finished shard; the manifest
is written last and replaces both.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import pyarrow as pa
from pydantic import ValidationError

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.card import dataset_card
from tsdfm.pipeline.storage.locks import LOCK_FILE
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.tokenizer_file import parse_tokenizer
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import EVERY_FIELD, Frozen, InputError, differences, first_line, parse_json, plain_json
from tsdfm.schemas.columns import values
from tsdfm.schemas.manifest import DatasetManifest, FormerDataset, Identity, ShardRecord, Totals
from tsdfm.schemas.trajectory import check_shard
from tsdfm.schemas.words import count

MANIFEST_FILE, CARD_FILE, RUN_FILE = "manifest.json", "README.md", ".run.json"
RECEIPTS = ".receipts"  # folder of what is known of finished shards until the manifest is
LIBRARIES = ("tsdfm-pipeline", "torch", "pyarrow", "tokenizers", "ray")


@dataclass(frozen=True)
class ShardPlan:
    """One unit of work: a file, and the trajectory ids start..stop-1 that it holds, in every arm."""

    path: str
    start: int
    stop: int


def plan(identity: Identity) -> list[ShardPlan]:
    """All shards of a dataset, in order; the last may be short."""
    count = math.ceil(identity.trajectories / identity.shard_size)
    return [
        ShardPlan(f"data/train-{index:05d}-of-{count:05d}.parquet", index * identity.shard_size,
                  min((index + 1) * identity.shard_size, identity.trajectories))
        for index in range(count)
    ]


def digest(identity: Identity) -> str:
    """sha256 of the canonical JSON of an identity, hex."""
    return hashlib.sha256(_canonical(identity.model_dump(mode="json")).encode()).hexdigest()


def _canonical(data: object) -> str:
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def claim(store: Store, identity: Identity) -> None:
    """Mark a folder as this identity's run. Raises InputError if it holds another dataset's run, or something else."""
    if not may_claim(store, identity):
        store.write(RUN_FILE, (json.dumps(identity.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode())


def may_claim(store: Store, identity: Identity) -> bool:
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
        if differing:
            raise InputError(f"{store.uri}: holds a dataset of another config; give another --out, or make these equal: "
                             + "; ".join(differing))
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


def check_bytes(data: bytes, item: ShardPlan, identity: Identity) -> tuple[pa.Table, list[tuple[int | None, str]]]:
    """Decode one shard and list its faults as (row, what): foreign identity, ids and arms out of plan, broken rows.

    Raises InputError if the bytes can't be decoded, whatever is wrong with them, or would decode to more than the plan holds.
    """
    try:
        shards.check_size(data, item.path, (item.stop - item.start) * len(identity.arms), identity.grid)
        table, owner = shards.decode(data, item.path)
        faults: list[tuple[int | None, str]] = []
        if owner != digest(identity):
            faults.append((None, "belongs to another dataset (its identity differs from the manifest's)"))
        faults += [(fault.row, fault.what) for fault in check_shard(table, identity.grid)]
        if all(row is not None for row, _ in faults):
            wanted = [(number, arm) for number in range(item.start, item.stop) for arm in identity.arms]
            found = list(zip(table.column("trajectory_id").to_pylist(), table.column("arm").to_pylist(), strict=True))
            if found != wanted:
                faults += list(_id_faults(found, wanted))
    except InputError:
        raise
    except Exception as error:  # of bytes that were made to break a reader, anything may come
        raise InputError(f"{item.path}: can't be decoded ({type(error).__name__}: {first_line(error, 100)}); restore or "
                         "regenerate it") from None
    return table, faults


def _id_faults(found: Sequence[tuple[int, str]], wanted: Sequence[tuple[int, str]]) -> Iterator[tuple[int | None, str]]:
    expected, seen = set(wanted), set()
    clean = True
    for row, pair in enumerate(found):
        if pair in seen or pair not in expected:
            clean = False
            yield row, f"trajectory {pair[0]} ({pair[1]}) {'occurs twice' if pair in seen else 'does not belong in this shard'}"
        seen.add(pair)
    missing = [pair for pair in wanted if pair not in seen]
    if missing:
        yield None, f"{count(len(missing), 'row')} missing, the first trajectory {missing[0][0]} ({missing[0][1]})"
    elif clean:
        yield None, "rows are not in the order of their trajectory ids"


@dataclass(frozen=True)
class Finished:
    """A shard that is written: its record, and how many events it holds."""

    record: ShardRecord
    events: int


def finished(path: str, data: bytes, table: pa.Table) -> Finished:
    """What the manifest needs to know of a shard's bytes and table."""
    record = ShardRecord(path=path, rows=table.num_rows, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return Finished(record, len(values(table, "event_step")))


class ShardReceipt(Frozen):
    """What is known of a shard of an unfinished dataset: the record that the manifest will take over, and its events."""

    record: ShardRecord
    events: int


def leave_receipt(store: Store, done: Finished) -> None:
    """Note a shard that has just been written. Only what is noted, here or in a manifest, is ever kept."""
    receipt = ShardReceipt(record=done.record, events=done.events)
    store.write(_receipt_path(done.record.path), receipt.model_dump_json().encode())


def _receipt_path(path: str) -> str:
    return f"{RECEIPTS}/{path.rpartition('/')[2]}.json"


def existing_shard(store: Store, item: ShardPlan, records: Mapping[str, ShardRecord] | None) -> Finished | None:
    """A shard that is there, and whose bytes hash to what is on record; None if it must be made.

    A shard is never kept for its looks: damage can leave it well-formed.

    Args:
        store: of the dataset.
        item: which shard.
        records: those of a manifest, by path; None: the dataset is unfinished, and the shard's receipt counts.
    """
    data = store.read(item.path)
    if data is None:
        return None
    if records is not None:
        record = records.get(item.path)
        if record is None or hashlib.sha256(data).hexdigest() != record.sha256:
            return None
        try:
            return finished(item.path, data, shards.decode(data, item.path)[0])
        except InputError:
            return None
    noted = store.read(_receipt_path(item.path))
    try:
        receipt = None if noted is None else ShardReceipt.model_validate_json(noted)
    except ValidationError:
        return None
    if receipt is None or receipt.record.path != item.path or hashlib.sha256(data).hexdigest() != receipt.record.sha256:
        return None
    return Finished(receipt.record, receipt.events)


def commit(
    store: Store, identity: Identity, done: list[Finished], vocabulary: Vocabulary, teacher: str | None = None,
    history: Sequence[FormerDataset] = (),
) -> DatasetManifest:
    """Write tokenizer, card and, last of all, the manifest.

    `done` must cover the plan, in order; `teacher`: where it was; `history`: what the dataset was before it grew.
    """
    records = [shard.record for shard in done]
    if [record.path for record in records] != [item.path for item in plan(identity)]:
        raise ValueError("commit needs one finished shard per planned one, in order")
    rows = sum(record.rows for record in records)
    manifest = DatasetManifest(
        identity=identity, time_grid=list(identity.rollout.times),
        shaped_steps=list(identity.grid.shaped_steps), shards=records,
        totals=Totals(rows=rows, events=sum(shard.events for shard in done), tokens=rows * (identity.rollout.length or 0),
                      bytes=sum(record.bytes for record in records)),
        teacher=teacher, versions={name: version(name) for name in LIBRARIES},
        history=list(history),
    )
    store.write(TOKENIZER_FILE, vocabulary.to_json().encode())
    store.write(CARD_FILE, dataset_card(manifest).encode())
    store.write(MANIFEST_FILE, (manifest.model_dump_json(indent=2) + "\n").encode())
    store.remove(RUN_FILE)
    for name in store.names(RECEIPTS):
        store.remove(f"{RECEIPTS}/{name}")
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
        raise InputError(f"{where}: its bytes differ from the manifest's checksum; restore it, or run generate again")
    return data


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
