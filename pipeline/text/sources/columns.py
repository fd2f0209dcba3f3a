"""The texts of a column of a table: of Parquet, and of Arrow, as a stream, which `datasets` saves to disk, or as a file of
batches.

Both kinds of file say at their end where in them the data is. So of several in a row, as `cat` makes them, one alone would be
read, or something of each; they are refused.
"""

import mmap
import os
import struct
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tsdfm.pipeline.text.sources.fields import CURE, ROWS_AT_ONCE, Texts, check_single
from tsdfm.schemas.base import InputError
from tsdfm.schemas.regular import check_regular, open_regular

BYTES_AT_ONCE = 1 << 20  # of a column
PARQUET = b"PAR1"  # which its files begin and end with
ARROW_FILE = b"ARROW1"  # which the file format of Arrow begins and ends with, and its streams don't
END_OF_ARROW = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream, which the library does not miss
ARROW_ALIGNMENT, MOST_BEFORE_FOOTER = 8, 64  # bytes: where messages begin; the mark of their end, and what aligns the footer
FOOTER_SIZE = struct.Struct("<i")  # stands behind the footer, in both


def parquet_texts(path: Path, field: str) -> Texts:
    """Of a column of a Parquet file. Raises InputError."""
    check_regular(path)
    table = pq.ParquetFile(path, buffer_size=BYTES_AT_ONCE)  # else a column of a row group is read as a whole
    _check_column(path, field, table.schema_arrow)
    _check_one_parquet(path, table.metadata)
    for batch in table.iter_batches(ROWS_AT_ONCE, columns=[field]):
        yield from batch.column(field).to_pylist()  # by its name: 'a.b' is asked for as the field b of a record a, too


def _check_one_parquet(path: Path, facts: pq.FileMetaData) -> None:
    """Raises InputError for several files in a row: the library takes the last one's footer for that of all.

    Between the data that a footer tells of and the footer itself there are at most indices. What is more is of other files:
    then the first of them ends, and the next begins, within so many bytes.
    """
    last = facts.num_row_groups - 1
    columns = [facts.row_group(last).column(number) for number in range(facts.num_columns)] if last >= 0 else []
    end = max((min(each.dictionary_page_offset or each.data_page_offset, each.data_page_offset) + each.total_compressed_size
               for each in columns), default=len(PARQUET))
    with open_regular(path) as file:
        between = os.fstat(file.fileno()).st_size - len(PARQUET) - FOOTER_SIZE.size - facts.serialized_size - end
        if between <= 0:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = FOOTER_SIZE.size
            while (at := data.find(PARQUET * 2, at + 1, between + len(PARQUET))) >= 0:
                if 0 < FOOTER_SIZE.unpack(data[at - FOOTER_SIZE.size : at])[0] < at:  # and not a text that says so
                    raise _several(path, "Parquet")


def _several(path: Path, kind: str) -> InputError:
    return InputError(f"{path}: holds several {kind} files in a row, of which one alone would be read; give each as a file of "
                      "its own")


def arrow_texts(path: Path, field: str) -> Texts:
    """Of a column of an Arrow stream or file. Raises InputError."""
    check_regular(path)
    with pa.memory_map(str(path)) as source:
        if source.read(len(ARROW_FILE)) == ARROW_FILE:
            yield from _batches_of_a_file(path, field, source)
            return
        source.seek(max(0, source.size() - len(END_OF_ARROW)))
        if source.read() != END_OF_ARROW:
            raise InputError(f"{path}: ends in the middle of an Arrow stream, or is none; download or copy it anew")
        source.seek(0)
        while source.tell() < source.size():  # streams may follow each other
            batches = pa.ipc.open_stream(source)
            _check_column(path, field, batches.schema)
            for batch in batches:
                yield from _texts_of(batch, field)


def _batches_of_a_file(path: Path, field: str, source: pa.MemoryMappedFile) -> Texts:
    batches = pa.ipc.open_file(source)  # which looks for the end of the file by itself
    _check_one_arrow(path, source)
    _check_column(path, field, batches.schema)
    for number in range(batches.num_record_batches):
        yield from _texts_of(batches.get_batch(number), field)


def _check_one_arrow(path: Path, source: pa.MemoryMappedFile) -> None:
    """Raises InputError for several files in a row: the library takes the last one's footer for that of all."""
    source.seek(source.size() - len(ARROW_FILE) - FOOTER_SIZE.size)
    footer = source.tell() - FOOTER_SIZE.unpack(source.read(FOOTER_SIZE.size))[0]
    end = ARROW_ALIGNMENT
    source.seek(end)
    with suppress(EOFError, OSError, ValueError):  # the mark of the end; the footer itself, where a library writes no mark
        while pa.ipc.read_message(source):  # which is mapped, not read
            end = source.tell()
    if footer - end > MOST_BEFORE_FOOTER:
        raise _several(path, "Arrow")


def _texts_of(batch: pa.RecordBatch, field: str) -> Texts:
    column = batch.column(field)
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield from column.slice(start, ROWS_AT_ONCE).to_pylist()


def _check_column(path: Path, field: str, schema: pa.Schema) -> None:
    check_single(str(path), field, schema.names)
    kind = schema.field(field).type
    if not _is_text(kind):
        raise InputError(f"{path}: column '{field}' holds {kind}, not text; {CURE}")


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(check(kind) for check in (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null))
