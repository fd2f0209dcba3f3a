"""What is known of the finished shards of an unfinished dataset: a receipt of each, until the manifest takes it over.

    OUT/.receipts/train-00003-of-00040.parquet.json      of OUT/data/train-00003-of-00040.parquet
"""

from pydantic import ValidationError

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import RECEIPTS, Finished, ShardPlan, digest
from tsdfm.pipeline.storage.once import ReadOnce
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.base import Frozen, Sha256
from tsdfm.schemas.manifest import Identity, ShardRecord


class ShardReceipt(Frozen):
    """What is known of a shard of an unfinished dataset: the record that the manifest will take over, and its events.

    `stamp` is what its store said of the file once it was written (see `Store.stamp`). A file that still has it is the one that
    was noted; any other, or one without, is read and hashed. `identity`: digest of what the shard is of; the first have none.
    """

    record: ShardRecord
    events: int
    stamp: str | None = None
    identity: Sha256 | None = None


def leave_receipt(store: Store, done: Finished, identity: Identity) -> None:
    """Note a shard of this identity that has just been written. Only what is noted, here or in a manifest, is ever kept."""
    receipt = ShardReceipt(record=done.record, events=done.events, stamp=store.stamp(done.record.path),
                           identity=digest(identity))
    store.write(receipt_path(done.record.path), receipt.model_dump_json().encode())


def receipt_path(path: str) -> str:
    """Where the receipt of a shard is: of data/X at RECEIPTS/X.json."""
    return f"{RECEIPTS}/{path.partition('/')[2]}.json"


def receipt_of(store: Store, identity: Identity, item: ShardPlan) -> ShardReceipt | None:
    """What this identity's run noted of a shard; None: nothing, or another's run did, or it can't be read."""
    noted = store.read(receipt_path(item.path))
    try:
        receipt = None if noted is None else ShardReceipt.model_validate_json(noted)
    except ValidationError:
        return None
    if receipt is None or receipt.record.path != item.path or receipt.identity not in (None, digest(identity)):
        return None
    return receipt


def with_receipt(store: Store, identity: Identity, item: ShardPlan) -> Finished | None:
    """A shard that is there and is the one that its receipt notes; None if it must be made.

    A shard is never kept for its looks: damage can leave it well-formed. It is read only where its size or time of writing is
    not what was noted, and its footer where the receipt does not say whose it is.
    """
    receipt = receipt_of(store, identity, item)
    if receipt is None:
        return None
    stamp = store.stamp(item.path)
    as_noted = stamp is not None and stamp == receipt.stamp
    if not as_noted or receipt.identity is None:
        file = store.open(item.path)
        if file is None:
            return None
        with file:
            once = ReadOnce(file)
            if not as_noted and once.sha256() != receipt.record.sha256:
                return None
            named = receipt.identity is not None or not item.path.endswith(".parquet")  # other files name none
            if not named and shards.owner_of(once.file, item.path) != digest(identity):
                return None
    return Finished(receipt.record, receipt.events)
