"""How several units of work become one file.

    OUT/.parts/train-00003-of-00040/00007.arrow      unit 7 of file 3, until the file is made

A unit is written there with its receipt, by whoever made it. Who finds all units of a file there makes the file of them, writes
it and its receipt, and then removes the units. Two may do so at the same time: both write the same bytes. Whoever is killed
between any two of these steps leaves what another goes on from, so nothing is lost and nothing is there twice.
"""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.files.receipts import ShardReceipt, leave_receipt, receipt_of, receipt_path, with_receipt
from tsdfm.pipeline.dataset.manifest import PARTS, RECEIPTS, Finished, ShardPlan, digest, file_at, finished
from tsdfm.pipeline.storage.store import Store
from tsdfm.schemas.manifest import Identity, ShardRecord


def units_of(identity: Identity, item: ShardPlan) -> list[ShardPlan]:
    """The units of work of a file, in order, each with the path that it is written to: the file's own if it is the only one."""
    if identity.shards_per_file in (None, 1):
        return [item]
    return [ShardPlan(f"{_folder(item)}/{number:05d}.arrow", start, min(start + identity.shard_size, item.stop))
            for number, start in enumerate(range(item.start, item.stop, identity.shard_size))]


def file_of(identity: Identity, unit: ShardPlan) -> ShardPlan:
    """The file that a unit of work is of."""
    return file_at(identity, unit.start // identity.trajectories_per_file)


def _folder(item: ShardPlan) -> str:
    return f"{PARTS}/{_stem(item)}"


def _stem(item: ShardPlan) -> str:
    return item.path.rpartition("/")[2].removesuffix(".parquet")


def is_made(store: Store, identity: Identity, unit: ShardPlan) -> Finished | None:
    """A unit that is there already, by itself or in its file; None if it must be made."""
    return with_receipt(store, identity, unit) or with_receipt(store, identity, file_of(identity, unit))


def write_unit(store: Store, identity: Identity, unit: ShardPlan, table: pa.Table) -> Finished:
    """Write a unit of work and its receipt, and its file if it is the last one of it. Raises InputError or WorkError."""
    item = file_of(identity, unit)
    if unit.path != item.path:
        data = _to_arrow(table)
    elif identity.shards_per_file is None:
        data = shards.encode(table, digest(identity))
    else:
        data = shards.encode_units([table], digest(identity), len(identity.arms))
    store.write(unit.path, data)
    done = finished(unit.path, data, table)
    leave_receipt(store, done, identity)
    if unit.path != item.path:
        compose(store, identity, item)
    return done


def compose(store: Store, identity: Identity, item: ShardPlan) -> Finished | None:
    """Make a file of its units, if all are there; None if not. A unit that is damaged is forgotten, to be made again."""
    units = units_of(identity, item)
    if not {_name(receipt_path(unit.path)) for unit in units} <= set(store.names(f"{RECEIPTS}/{_stem(item)}")):
        return None
    receipts = [receipt_of(store, identity, unit) for unit in units]
    known = [receipt for receipt in receipts if receipt is not None]
    if len(known) < len(units):
        return None
    try:
        data = shards.encode_units(_tables(store, known), digest(identity), len(identity.arms))
    except _Gone:
        return None
    record = ShardRecord(path=item.path, rows=sum(receipt.record.rows for receipt in known), bytes=len(data),
                         sha256=hashlib.sha256(data).hexdigest())
    done = Finished(record, sum(receipt.events for receipt in known))
    store.write(item.path, data)
    leave_receipt(store, done, identity)
    remove_units(store, item)
    return done


def present_units(store: Store, identity: Identity, item: ShardPlan) -> list[int]:
    """Which of the units of a file are there, sound and not yet part of it: their numbers within the file."""
    there = set(store.names(_folder(item)))
    return [number for number, unit in enumerate(units_of(identity, item))
            if _name(unit.path) in there and with_receipt(store, identity, unit) is not None]


def remove_units(store: Store, item: ShardPlan) -> None:
    """Remove the units of a file, and what is known of them."""
    for folder in (f"{RECEIPTS}/{_stem(item)}", _folder(item)):
        for name in store.names(folder):
            store.remove(f"{folder}/{name}")


def rows_of_units(tables: Iterator[pa.Table], identity: Identity, item: ShardPlan) -> Iterator[pa.Table]:
    """The row groups of a file to the tables of its units: a unit is one or more of them."""
    for unit in range(item.start, item.stop, identity.shard_size):
        rows = (min(unit + identity.shard_size, item.stop) - unit) * len(identity.arms)
        found: list[pa.Table] = []
        while sum(table.num_rows for table in found) < rows:
            found.append(next(tables))
        yield pa.concat_tables(found)


def _name(path: str) -> str:
    return path.rpartition("/")[2]


class _Gone(Exception):
    """A unit has been removed meanwhile: another has made the file. Or it was damaged."""


def _tables(store: Store, receipts: list[ShardReceipt]) -> Iterator[pa.Table]:
    for receipt in receipts:
        data = store.read(receipt.record.path)
        if data is None:
            raise _Gone
        if hashlib.sha256(data).hexdigest() != receipt.record.sha256:
            store.remove(receipt_path(receipt.record.path))
            raise _Gone
        yield pa.ipc.open_file(pa.BufferReader(data)).read_all()


def _to_arrow(table: pa.Table) -> bytes:
    """A table as it lies in memory, lightly compressed: it is read once, and soon."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
