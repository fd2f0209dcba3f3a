"""The check of one file: its rows against the invariants of the jump log, its ids against the plan, a row group at a time."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from tsdfm.pipeline.dataset import shards
from tsdfm.pipeline.dataset.manifest import ShardPlan, digest
from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.manifest import Identity
from tsdfm.schemas.trajectory import check_shard
from tsdfm.schemas.words import count

RowFault = tuple[int | None, str]  # the row within its file, None for the whole file, and what is wrong


def check_bytes(data: bytes, item: ShardPlan, identity: Identity) -> tuple[pa.Table, list[RowFault]]:
    """Decode one shard and list its faults as (row, what): foreign identity, ids and arms out of plan, broken rows.

    Raises InputError if the bytes can't be decoded, whatever is wrong with them, or would decode to more than the plan holds.
    """
    faults: list[RowFault] = []
    tables = [table for _, table in check_groups(pa.BufferReader(data), item, identity, faults)]
    return pa.concat_tables(tables), faults


def check_groups(file: pa.NativeFile, item: ShardPlan, identity: Identity, faults: list[RowFault]
                 ) -> Iterator[tuple[int, pa.Table]]:
    """`check_bytes`, a row group at a time: yields the file's row that each begins at, and its table.

    `faults` is appended to: before a table is yielded by its own, at the end by what is wrong with the ids of all.
    """
    found: list[tuple[int, str]] = []
    try:
        shards.check_size(file, item.path, (item.stop - item.start) * len(identity.arms), identity.grid)
        if shards.owner_of(file, item.path) != digest(identity):
            faults.append((None, "belongs to another dataset (its identity differs from the manifest's)"))
        first = 0
        for table in shards.decode_groups(file, item.path):
            faults += [(None if fault.row is None else first + fault.row, fault.what)
                       for fault in check_shard(table, identity.grid)]
            if all(row is not None for row, _ in faults):
                found += zip(table.column("trajectory_id").to_pylist(), table.column("arm").to_pylist(), strict=True)
            yield first, table
            first += table.num_rows
        if all(row is not None for row, _ in faults):
            wanted = [(number, arm) for number in range(item.start, item.stop) for arm in identity.arms]
            if found != wanted:
                faults += _id_faults(found, wanted)
    except InputError:
        raise
    except Exception as error:  # of bytes that were made to break a reader, anything may come
        raise InputError(f"{item.path}: can't be decoded ({type(error).__name__}: {first_line(error, 100)}); restore or "
                         "regenerate it") from None


def check_unit(file: pa.NativeFile, item: ShardPlan, unit: ShardPlan, identity: Identity) -> tuple[pa.Table, list[RowFault]]:
    """`check_bytes` of one unit of work of a file: the row groups of others are not read. Rows are those of the file."""
    arms = len(identity.arms)
    faults: list[RowFault] = []
    try:
        shards.check_size(file, item.path, (item.stop - item.start) * arms, identity.grid)
        if shards.owner_of(file, item.path) != digest(identity):
            faults.append((None, "belongs to another dataset (its identity differs from the manifest's)"))
        first, rows = (unit.start - item.start) * arms, (unit.stop - unit.start) * arms
        groups = shards.groups_between(file, item.path, first, first + rows)
        table = pa.concat_tables(shards.decode_groups(file, item.path, groups))
        faults += [(None if fault.row is None else first + fault.row, fault.what)
                   for fault in check_shard(table, identity.grid)]
        if all(row is not None for row, _ in faults):
            found = list(zip(table.column("trajectory_id").to_pylist(), table.column("arm").to_pylist(), strict=True))
            wanted = [(number, arm) for number in range(unit.start, unit.stop) for arm in identity.arms]
            if found != wanted:
                faults += [(None if row is None else first + row, what) for row, what in _id_faults(found, wanted)]
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
