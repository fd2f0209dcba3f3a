"""A finished dataset grows: more trajectories of the same config, without making again what is there.

    OUT/.growing/    the larger dataset in the making; gone once it has taken the place of the old one

Trajectories don't depend on each other, so those of whole shards are kept: their rows are stamped with the new identity and
written anew (the bytes are those of a dataset made in the larger size at once). Until the larger dataset is complete, the old
one stays what it is, for every reader. Then its files are moved to their places; meanwhile there is no manifest, so OUT counts
as unfinished, and whatever interrupts that, the next run ends it.
"""

import hashlib
import json
import time
from collections.abc import Callable

import pyarrow as pa

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.parts import rows_of_units
from tsdfm.pipeline.dataset.files.receipts import leave_receipt
from tsdfm.pipeline.dataset.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    RUN_FILE,
    Finished,
    ShardPlan,
    digest,
    folders,
    opened_shard,
    plan,
    read_manifest,
)
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.schemas.base import InputError, differences
from tsdfm.schemas.manifest import DatasetManifest, FormerDataset, Identity, ShardRecord

GROWING = ".growing"


Resized = Callable[[int], Identity]  # the identity of the dataset in so many trajectories, if it had them


def former_dataset(store: Store, identity: Identity, resized: Resized) -> DatasetManifest | None:
    """The finished dataset that is to grow to `identity`; None if there is none.

    Raises InputError if `identity` has fewer trajectories, or others than a dataset or a growth that is unfinished.
    """
    asked = identity.trajectories
    if store.read(MANIFEST_FILE) is None:
        there = _only_other_size(store.read(RUN_FILE), identity, resized)
        if there is not None:
            raise InputError(f"{store.uri}: holds an unfinished dataset of {there} trajectories; finish it with --trajectories "
                             f"{there}, and then let it grow, or give another --out")
        return None
    manifest = read_manifest(store)
    there = manifest.identity.trajectories
    if not _differ_in_size_alone(manifest.identity.model_dump(mode="json"), identity, resized):
        return None
    if asked < there:
        raise InputError(f"{store.uri}: holds {there} trajectories, and a dataset does not shrink; give --trajectories {there} "
                         "or more, or another --out (readers can take fewer: `distill --set data.trajectories=N`)")
    begun = _only_other_size(store.read(f"{GROWING}/{RUN_FILE}"), identity, resized)
    if begun is not None:
        raise InputError(f"{store.uri}: is growing to {begun} trajectories; finish that with --trajectories {begun}, or give "
                         f"it up with --trajectories {there}")
    return manifest


def _only_other_size(run: bytes | None, identity: Identity, resized: Resized) -> int | None:
    """The number of trajectories of an unfinished run that differs from `identity` in nothing else; None if it is not so."""
    try:
        found = json.loads(run or b"null")
    except ValueError:
        return None
    return int(found["trajectories"]) if isinstance(found, dict) and _differ_in_size_alone(found, identity, resized) else None


def _differ_in_size_alone(old: dict[str, object], identity: Identity, resized: Resized) -> bool:
    there = old.get("trajectories")
    if not isinstance(there, int) or there in (identity.trajectories, True) or there < 1:
        return False
    return not differences(old, resized(there).model_dump(mode="json"))


def whole_files(former: DatasetManifest) -> dict[tuple[int, int], ShardRecord]:
    """The files of the former dataset, by the ids that they hold."""
    records = {record.path: record for record in former.shards}
    return {(item.start, item.stop): records[item.path] for item in plan(former.identity) if item.path in records}


def carried_over(store: Store, growing: Store, identity: Identity, given: tuple[ShardPlan, ShardRecord | None]
                 ) -> Finished | None:
    """Take the rows of a file over from that of the former dataset, if it has all of them and they hash to what it says.

    None if there is no such file, or it was changed, or can't be read.
    """
    item, record = given
    if record is None:
        return None
    try:
        where = f"{store.uri}/{record.path}"
        with opened_shard(store, record) as once, shards.readable(where):
            shards.check_size(once.file, where, record.rows, identity.grid)
            tables = shards.decode_groups(once.file, where)
            if identity.shards_per_file is None:
                stamped = shards.encode(pa.concat_tables(tables), digest(identity))
            else:
                stamped = shards.encode_units(rows_of_units(tables, identity, item), digest(identity), len(identity.arms))
    except InputError:
        return None
    written = ShardRecord(path=item.path, rows=record.rows, bytes=len(stamped), sha256=hashlib.sha256(stamped).hexdigest())
    done = Finished(written, shards.count_events(pa.BufferReader(stamped), item.path))
    growing.write(item.path, stamped)
    leave_receipt(growing, done, identity)
    return done


def history_of(store: Store, former: DatasetManifest | None) -> list[FormerDataset]:
    """What the next manifest tells of the former dataset, and of those before it; without one, what the last manifest told."""
    if former is None:
        return [] if store.read(MANIFEST_FILE) is None else read_manifest(store).history
    return [*former.history, FormerDataset(
        trajectories=former.identity.trajectories, rows=former.totals.rows, bytes=former.totals.bytes,
        until=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), versions=former.versions)]


def finish_growth(store: Store) -> None:
    """Put a larger dataset that is complete in the place of the old one; nothing happens if there is none.

    May be cut at any point, and then be called again.
    """
    held = store.read(f"{GROWING}/{MANIFEST_FILE}")
    if held is None:
        return
    try:
        manifest = read_manifest(store.inside(GROWING))
    except InputError as error:
        raise InputError(f"{error}; or delete the folder {store.uri}/{GROWING}: what is lost with it is made again") from None
    if store.read(MANIFEST_FILE) != held:
        store.write(RUN_FILE, (json.dumps(manifest.identity.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode())
        store.remove(MANIFEST_FILE)
        paths = [record.path for record in manifest.shards]
        waiting = {f"{folder}/{name}" for folder in folders(paths) for name in store.names(f"{GROWING}/{folder}")}
        for path in paths:
            if path in waiting:
                store.move(f"{GROWING}/{path}", path)
        for path in sorted(_former_files(manifest) - set(paths)):
            store.remove(path)
        for file in (TOKENIZER_FILE, CARD_FILE):
            written = store.read(f"{GROWING}/{file}")
            if written is not None:
                store.write(file, written)
        store.write(MANIFEST_FILE, held)
    store.remove(RUN_FILE)
    remove_growth(store)


def _former_files(manifest: DatasetManifest) -> set[str]:
    """The files of the dataset that a larger one grew from: of what else lies there, nothing is ours."""
    sizes = [former.trajectories for former in manifest.history[-1:]]
    return {item.path for size in sizes for item in plan(manifest.identity.model_copy(update={"trajectories": size}))}


def remove_growth(store: Store) -> None:
    """Remove what a growth has written so far, its manifest last."""
    manifest = f"{GROWING}/{MANIFEST_FILE}"
    for path in sorted(store.below(GROWING), key=lambda path: (path == manifest, path)):
        store.remove(path)
