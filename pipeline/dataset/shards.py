"""Jump logs to Parquet bytes and back. The same rows always give the same bytes.

Flat lists of small integers and of quantised energies compress best byte-shuffled (BYTE_STREAM_SPLIT) under zstd; steps and
positions, which rise, as deltas. float16 lists stay plain: DuckDB (2.0) reads no other encoding of them.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tsdfm.pipeline.dataset.jump_log import JumpLog
from tsdfm.pipeline.text.ends.written import text_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.trajectory import ARROW_SCHEMA, WHOLE_SCHEMA, Grid, check_shard

ZSTD_LEVEL = 15
GROUP_BYTES = 96 << 20  # of a row group, decoded, at the most
PAGE_BYTES = 1 << 20  # of files with a page index, by which a reader finds a page without reading those before it
IDENTITY_KEY = b"tsdfm.identity"
SIZE_SLACK = 2  # of the most that rows can take: levels and headers of pages come on top
TEXT_BYTES = 64  # of decoded text per token, at the most
SMALLEST = 1 << 20
_SPLIT = ("tokens", "source_tokens", "event_token", "event_candidates", "event_topk_ids", "step_energy",
          "event_energy")
_DELTA = ("event_step", "event_position", "fixed_positions")
_ENCODINGS = dict.fromkeys(_SPLIT, "BYTE_STREAM_SPLIT") | dict.fromkeys(_DELTA, "DELTA_BINARY_PACKED")


def columns_of(log: JumpLog, vocabulary: Vocabulary, end_id: int | None = None) -> dict[str, object]:
    """One row's columns, flat arrays, in the order of WHOLE_SCHEMA; None for one that its dataset doesn't have.

    `end_id`: of texts that are shown up to their end.
    """
    return {
        "trajectory_id": log.trajectory_id, "arm": log.arm, "text": text_of(vocabulary, log.tokens, end_id),
        "tokens": log.tokens, "source_tokens": log.source_tokens, "event_step": log.event_step,
        "event_position": log.event_position, "event_token": log.event_token,
        "event_candidates": log.event_candidates.ravel(), "event_topk_ids": log.event_topk_ids.ravel(),
        "event_topk_logprobs": log.event_topk_logprobs.ravel(), "step_energy": log.step_energy.ravel(),
        "step_choice": log.step_choice, "final_energy": log.final_energy, "fixed_positions": log.fixed_positions,
        "event_choice": log.event_choice, "event_energy": _flat(log.event_energy), "event_logprob": _flat(log.event_logprob),
    }


def _flat(values: npt.NDArray[np.generic] | None) -> npt.NDArray[np.generic] | None:
    return None if values is None else values.ravel()


def to_table(
    logs: Sequence[JumpLog], vocabulary: Vocabulary, schema: pa.Schema = ARROW_SCHEMA, end_id: int | None = None
) -> pa.Table:
    """An Arrow table of a dataset's schema (see `arrow_schema`), one row per log; `end_id`: as of `columns_of`."""
    rows = [columns_of(log, vocabulary, end_id) for log in logs]
    return pa.Table.from_pydict({name: [row[name] for row in rows] for name in schema.names}, schema=schema)


def encode(table: pa.Table, identity_digest: str) -> bytes:
    """The Parquet bytes of a shard; its metadata names the identity of the dataset it belongs to."""
    buffer = io.BytesIO()
    # One row group and no page index: a shard is read whole. use_dictionary=False, or the encodings would not apply.
    pq.write_table(
        table.cast(_schema(table, identity_digest)), buffer, compression="zstd", compression_level=ZSTD_LEVEL,
        use_dictionary=False, column_encoding=_encodings(table), write_statistics=["trajectory_id"], data_page_size=1 << 26,
        row_group_size=max(1, table.num_rows),
    )
    return buffer.getvalue()


def encode_units(units: Iterable[pa.Table], identity_digest: str, arms: int) -> bytes:
    """The Parquet bytes of a file of several units of work: each its own row groups, of at most GROUP_BYTES, with a page index.

    Args:
        units: the table of each, taken one at a time; at least one.
        identity_digest: of the dataset.
        arms: rows of one trajectory, which stay in one row group.
    """
    buffer, coming = io.BytesIO(), iter(units)
    first = next(coming)
    schema = _schema(first, identity_digest)
    with pq.ParquetWriter(buffer, schema, compression="zstd", compression_level=ZSTD_LEVEL, use_dictionary=False,
                          column_encoding=_encodings(first), write_statistics=["trajectory_id"], data_page_size=PAGE_BYTES,
                          write_page_index=True) as writer:
        for table in chain([first], coming):
            writer.write_table(table.cast(schema), row_group_size=rows_per_group(table, arms))
    return buffer.getvalue()


def rows_per_group(table: pa.Table, arms: int) -> int:
    """How many rows of a table make row groups of at most GROUP_BYTES: a function of its values, not of how they are held."""
    largest = 0
    for field in table.schema:
        column = table.column(field.name)
        if pa.types.is_list(field.type):
            lengths, width = pc.list_value_length(column), field.type.value_type.bit_width // 8
        elif pa.types.is_string(field.type):
            lengths, width = pc.binary_length(column), 1
        else:
            lengths, width = None, field.type.bit_width // 8
        longest = 1 if lengths is None else pc.max(lengths).as_py() or 0
        largest += longest * width
    return max(1, GROUP_BYTES // max(1, largest * arms)) * arms


def _schema(table: pa.Table, identity_digest: str) -> pa.Schema:
    """The schema of a table's columns as it stands in a file, whatever else a table that was read brings along."""
    from datasets import Features

    columns = pa.schema([WHOLE_SCHEMA.field(name) for name in table.schema.names])
    features = Features.from_arrow_schema(columns).arrow_schema.metadata
    return columns.with_metadata({**features, IDENTITY_KEY: identity_digest.encode()})


def _encodings(table: pa.Table) -> dict[str, str]:
    return {f"{name}.list.element": encoding for name, encoding in _ENCODINGS.items() if name in table.schema.names}


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Whatever a file's bytes make its readers raise is an InputError that names it: pyarrow raises more than its own kinds."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: not a readable Parquet file ({first_line(error, 100)}); restore or regenerate it") from None


def check_size(file: pa.NativeFile, where: str, rows: int, grid: Grid) -> None:
    """Refuse a shard that its own footer says is larger than the plan, before a byte of it is decoded. Raises InputError.

    Args:
        file: the file.
        where: how messages name it.
        rows: that it should hold.
        grid: gives the most that a row can take.
    """
    with readable(where):
        footer = pq.read_metadata(file)
    if footer.num_rows != rows:
        raise InputError(f"{where}: holds {footer.num_rows} rows, not {rows}; restore or regenerate it")
    # Of groups, not of columns: pyarrow ends the process where a damaged footer describes no such column.
    size = sum(footer.row_group(group).total_byte_size for group in range(footer.num_row_groups))
    events = grid.length * (1 if grid.mask_id is not None else grid.steps)
    words = events * (3 + grid.candidates + 2 * grid.top_k) + len(grid.shaped_steps) * (grid.candidates + 1)
    words += events * (grid.by_token * (grid.candidates + 1) + grid.logprobs * grid.candidates)
    words += (3 if grid.fixed else 2) * grid.length
    if size > SIZE_SLACK * (rows * (4 * words + TEXT_BYTES * grid.length) + SMALLEST):
        raise InputError(f"{where}: would decode to {size:,} bytes, more than its {rows} rows can hold; restore or regenerate "
                         "it")


def decode(data: bytes, where: str) -> tuple[pa.Table, str]:
    """Parquet bytes to the table and the identity it names. Raises InputError if they are not a readable shard."""
    with readable(where):
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)  # text that is not UTF-8, offsets that point nowhere
    identity = (table.schema.metadata or {}).get(IDENTITY_KEY, b"").decode(errors="replace")
    return table, identity


def owner_of(file: pa.NativeFile, where: str) -> str:
    """The identity that a file names, "" if none. Raises InputError if it is no Parquet file."""
    with readable(where):
        metadata = pq.read_schema(file).metadata or {}
    return str(metadata.get(IDENTITY_KEY, b"").decode(errors="replace"))


def decode_groups(file: pa.NativeFile, where: str, groups: Iterable[int] | None = None) -> Iterator[pa.Table]:
    """The tables of a file, a row group at a time; `groups`: of these alone. Raises InputError if one is not readable."""
    with readable(where):
        parquet = _in_order(file)
    for group in range(parquet.num_row_groups) if groups is None else groups:
        with readable(where):
            table = parquet.read_row_group(group, use_threads=False)
            table.validate(full=True)  # text that is not UTF-8, offsets that point nowhere
        yield table


def some_columns(file: pa.NativeFile, where: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of a file, a row group at a time. Raises InputError if one is not readable."""
    with readable(where):
        parquet = _in_order(file)
    for group in range(parquet.num_row_groups):
        with readable(where):
            table = parquet.read_row_group(group, columns=list(names), use_threads=False)
        yield table


def _in_order(file: pa.NativeFile) -> pq.ParquetFile:
    """A file that is asked for its bytes in the order in which they lie, for `ReadOnce`: several files are read at a time."""
    return pq.ParquetFile(file, pre_buffer=False)


def groups_between(file: pa.NativeFile, where: str, start: int, stop: int) -> list[int]:
    """The row groups that hold the rows start..stop-1. Raises InputError if others are in them."""
    with readable(where):
        footer = pq.read_metadata(file)
        sizes = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
    groups, begins = [], 0
    for group, size in enumerate(sizes):
        ends = begins + size
        if begins < stop and ends > start:
            if begins < start or ends > stop:
                raise InputError(f"{where}: row group {group} holds rows of several units; restore or regenerate it")
            groups.append(group)
        begins = ends
    return groups


def sound_groups(file: pa.NativeFile, where: str, rows: int, grid: Grid) -> Iterator[pa.Table]:
    """The tables of a file of so many rows, a row group at a time, which hold the invariants.

    Raises InputError naming the first fault.
    """
    check_size(file, where, rows, grid)
    first = 0
    for table in decode_groups(file, where):
        _refuse_faulty(table, where, grid, first)
        yield table
        first += table.num_rows


def count_events(file: pa.NativeFile, where: str) -> int:
    """How many events the rows of a file have, by its footer alone: each row has one, or more. Raises InputError.

    Only for files whose bytes are known to be ours: pyarrow ends the process over some damaged footers.
    """
    with readable(where):
        footer = pq.read_metadata(file)
        groups = [footer.row_group(group) for group in range(footer.num_row_groups)]
        columns = [group.column(index) for group in groups for index in range(group.num_columns)]
        return sum(column.num_values for column in columns if column.path_in_schema.split(".")[0] == "event_step")


def read_sound(data: bytes, where: str, grid: Grid) -> pa.Table:
    """The table of a shard whose rows hold the invariants, on which readers rely. Raises InputError naming the first fault."""
    table = decode(data, where)[0]
    _refuse_faulty(table, where, grid, 0)
    return table


def _refuse_faulty(table: pa.Table, where: str, grid: Grid, first: int) -> None:
    """Raises InputError naming the first fault of a table, whose rows begin at row `first` of its file."""
    with readable(where):
        faults = check_shard(table, grid)
    if faults:
        row = "" if faults[0].row is None else f"row {first + faults[0].row}: "
        raise InputError(f"{where}: {row}{faults[0].what}; "
                         "run verify to list all faults, and generate to remake the shard")


def column_bytes(file: pa.NativeFile, where: str) -> dict[str, int]:
    """Compressed bytes of each column. Only for files whose bytes are known to be ours, as `count_events`."""
    sizes: dict[str, int] = {}
    with readable(where):
        footer = pq.read_metadata(file)
        for group in range(footer.num_row_groups):
            for index in range(footer.num_columns):
                column = footer.row_group(group).column(index)
                name = column.path_in_schema.split(".")[0]
                sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return sizes


def to_log(table: pa.Table, row: int) -> JumpLog:
    """One row of a checked table as a jump log."""
    cells = {name: table.column(name)[row] for name in table.schema.names}

    def array(name: str, dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.asarray(cells[name].values.to_numpy(zero_copy_only=False), dtype=dtype)

    def newer(name: str, dtype: type[np.generic]) -> npt.NDArray[Any] | None:
        return array(name, dtype) if name in cells else None

    def of_candidates(name: str, dtype: type[np.generic]) -> npt.NDArray[Any] | None:
        return array(name, dtype).reshape(events, -1) if name in cells else None

    events = len(cells["event_step"].values)
    choices = array("step_choice", np.int8)
    final = cells["final_energy"].as_py()
    return JumpLog(
        trajectory_id=cells["trajectory_id"].as_py(), arm=cells["arm"].as_py(),
        source_tokens=None if not cells["source_tokens"].is_valid else array("source_tokens", np.int32),
        tokens=array("tokens", np.int32), event_step=array("event_step", np.int32),
        event_position=array("event_position", np.int32), event_token=array("event_token", np.int32),
        event_candidates=array("event_candidates", np.int32).reshape(events, -1),
        event_topk_ids=array("event_topk_ids", np.int32).reshape(events, -1),
        event_topk_logprobs=array("event_topk_logprobs", np.float16).reshape(events, -1),
        step_energy=array("step_energy", np.float32).reshape(len(choices), -1 if len(choices) else 1),
        step_choice=choices, final_energy=final,
        fixed_positions=newer("fixed_positions", np.int32), event_choice=newer("event_choice", np.int8),
        event_energy=of_candidates("event_energy", np.float32), event_logprob=of_candidates("event_logprob", np.float16),
    )
