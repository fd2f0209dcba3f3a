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

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    RECEIPTS,
    RUN_FILE,
    Finished,
    ShardPlan,
    digest,
    finished,
    leave_receipt,
    plan,
    read_manifest,
)
from tsdfm.pipeline.storage.store import Store
from tsdfm.pipeline.text.vocabulary import FILE as TOKENIZER_FILE
from tsdfm.schemas.base import InputError, differences
from tsdfm.schemas.manifest import DatasetManifest, FormerDataset, Identity

GROWING = ".growing"


def former_dataset(store: Store, identity: Identity) -> DatasetManifest | None:
    """The finished dataset that is to grow to `identity`; None if there is none.

    Raises InputError if `identity` has fewer trajectories, or others than a dataset or a growth that is unfinished.
    """
    asked = identity.trajectories
    if store.read(MANIFEST_FILE) is None:
        there = _only_other_size(store.read(RUN_FILE), identity)
        if there is not None:
            raise InputError(f"{store.uri}: holds an unfinished dataset of {there} trajectories; finish it with --trajectories "
                             f"{there}, and then let it grow, or give another --out")
        return None
    manifest = read_manifest(store)
    there = manifest.identity.trajectories
    if not _differ_in_size_alone(manifest.identity.model_dump(mode="json"), identity):
        return None
    if asked < there:
        raise InputError(f"{store.uri}: holds {there} trajectories, and a dataset does not shrink; give --trajectories {there} "
                         "or more, or another --out (readers can take fewer: `distill --set data.trajectories=N`)")
    begun = _only_other_size(store.read(f"{GROWING}/{RUN_FILE}"), identity)
    if begun is not None:
        raise InputError(f"{store.uri}: is growing to {begun} trajectories; finish that with --trajectories {begun}, or give "
                         f"it up with --trajectories {there}")
    return manifest


def _only_other_size(run: bytes | None, identity: Identity) -> int | None:
    """The number of trajectories of an unfinished run that differs from `identity` in nothing else; None if it is not so."""
    try:
        found = json.loads(run or b"null")
    except ValueError:
        return None
    return int(found["trajectories"]) if isinstance(found, dict) and _differ_in_size_alone(found, identity) else None


def _differ_in_size_alone(old: dict[str, object], identity: Identity) -> bool:
    named = [each.partition(" ")[0] for each in differences(old, identity.model_dump(mode="json"))]
    return named == ["trajectories"]


def carried_over(store: Store, former: DatasetManifest, growing: Store, identity: Identity, item: ShardPlan) -> Finished | None:
    """Take the rows of a shard over from the former dataset, if it has all of them and they hash to what it says; else None."""
    places = {(each.start, each.stop): each.path for each in plan(former.identity)}
    path = places.get((item.start, item.stop))
    record = next((record for record in former.shards if record.path == path), None)
    data = None if record is None else store.read(record.path)
    if record is None or data is None or hashlib.sha256(data).hexdigest() != record.sha256:
        return None
    table, _ = shards.decode(data, f"{store.uri}/{record.path}")
    stamped = shards.encode(table, digest(identity))
    growing.write(item.path, stamped)
    done = finished(item.path, stamped, table)
    leave_receipt(growing, done)
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
    manifest = read_manifest(store.inside(GROWING))
    if store.read(MANIFEST_FILE) != held:
        store.write(RUN_FILE, (json.dumps(manifest.identity.model_dump(mode="json"), indent=2, sort_keys=True) + "\n").encode())
        store.remove(MANIFEST_FILE)
        waiting = set(store.names(f"{GROWING}/data"))
        for record in manifest.shards:
            if record.path.rpartition("/")[2] in waiting:
                store.move(f"{GROWING}/{record.path}", record.path)
        for name in sorted(set(store.names("data")) - {record.path.rpartition("/")[2] for record in manifest.shards}):
            store.remove(f"data/{name}")
        for file in (TOKENIZER_FILE, CARD_FILE):
            written = store.read(f"{GROWING}/{file}")
            if written is not None:
                store.write(file, written)
        store.write(MANIFEST_FILE, held)
    store.remove(RUN_FILE)
    remove_growth(store)


def remove_growth(store: Store) -> None:
    """Remove what a growth has written so far, its manifest last."""
    for folder in (f"{GROWING}/data", f"{GROWING}/{RECEIPTS}", GROWING):
        for name in sorted(store.names(folder), key=lambda name: name == MANIFEST_FILE):
            if name not in ("data", RECEIPTS):
                store.remove(f"{folder}/{name}")
