"""The texts of one file. Its name says what it holds (in any case: .JSONL.GZ), and its content is checked against that.

    .txt .text .md .markdown .rst   plain text: blank lines separate documents
    .jsonl .ndjson .json            records, a line each, or an array of them
    .csv .tsv                       a table whose first line names the columns
    .parquet .arrow                 a table; .arrow as a stream, which `datasets` saves to disk, or as a file of batches

All but the last, which compress by themselves, may be compressed (`compression`). A text is a string, or None where the file
says null.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from tsdfm.pipeline.text.sources.compression import SUFFIXES, bare_name, plain_bytes
from tsdfm.pipeline.text.sources.json_array import array_items, not_json
from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.regular import check_regular

PROSE, RECORDS, TABLES = (".txt", ".text", ".md", ".markdown", ".rst"), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow")
KNOWN = (*PROSE, *RECORDS, *TABLES, *COLUMNS)
CURE = "name the right one with --text-field (corpus.text_field), or --prompt-field for prompts"
ROWS_AT_ONCE = 256
LONGEST = 1 << 26  # characters of a document, and of a line: it is held as a whole, and its tokens take many times that
BYTES_AT_ONCE = 1 << 20  # of a column, or characters of a line, read to see what they are
NAMES_SHOWN = 12
ARROW_FILE = b"ARROW1"  # which the file format of Arrow begins with, and its streams don't
END_OF_ARROW = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream, which the library does not miss

Texts = Iterator[str | None]


def suffix_of(path: Path) -> str:
    """The suffix that says what a file holds, in lower case; '' if there is none."""
    return Path(bare_name(path)).suffix


def is_known(path: Path) -> bool:
    """Whether a file's name is that of a format with texts."""
    return suffix_of(path) in KNOWN


def file_texts(path: Path, field: str) -> Texts:
    """The texts of a file, in order: `field` of its records or columns. Raises InputError naming what is wrong, and where."""
    return _faults_told(path, lambda: _reader(path)(path, field))


def short_texts(path: Path, field: str) -> Texts:
    """As `file_texts`, but of plain text every line that is not blank is a text."""
    return _faults_told(path, lambda: _prose_lines(path, field) if suffix_of(path) in PROSE else _reader(path)(path, field))


def _reader(path: Path) -> Callable[[Path, str], Texts]:
    suffix = suffix_of(path)
    if suffix not in KNOWN:
        raise InputError(f"{path}: not a kind of file that texts are read from; give {', '.join(KNOWN)}, all but the last two "
                         f"also compressed ({', '.join(SUFFIXES)}), and name plain text .txt")
    return _READERS[suffix]


def _faults_told(path: Path, read: Callable[[], Texts]) -> Texts:
    try:
        yield from read()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; convert it first") from None
    except (InputError, MemoryError):
        raise
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{path}: cannot be read ({first_line(error)}); check the file") from None


def record_text(record: object, field: str, where: str) -> str | None:
    """The text of a record. Raises InputError, naming `where`, if it has none."""
    if not isinstance(record, dict):
        raise InputError(f"{where}: a {_kind(record)}, not a record with fields; write {{\"{field}\": \"...\"}}")
    if field not in record:
        raise no_field(where, field, record)
    text = record[field]
    if not (text is None or isinstance(text, str)):
        raise InputError(f"{where}: field '{field}' holds a {_kind(text)}, not text; {CURE}")
    return text


def no_field(where: str, field: str, names: Iterable[object]) -> InputError:
    """What to say where there is no such field or column, of those that there are."""
    there = [str(name) for name in names]
    more = ", ..." if len(there) > NAMES_SHOWN else ""
    return InputError(f"{where}: no text field '{field}'; it has {', '.join(there[:NAMES_SHOWN]) or 'none'}{more}; {CURE}")


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds texts."""
    if pa.types.is_dictionary(kind):
        return is_text(kind.value_type)
    return any(check(kind) for check in (
        pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null))


def _kind(value: object) -> str:
    return {dict: "record", list: "list", str: "string", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _opened(stream: IO[bytes], newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(stream, "utf-8-sig", newline=newline)  # a mark of byte order at the beginning is no text


def _lines(path: Path, text: IO[str], number: int = 1) -> Iterator[str]:
    """The lines of a text, of which the first is line `number` of the file. Raises InputError where one is too long."""
    for at in count(number):
        line = text.readline(LONGEST + 1)
        if not line:
            return
        if len(line) > LONGEST:
            raise InputError(f"{path}:{at}: a line of more than {LONGEST:,} characters; cut its text into several documents, "
                             "of which each is a record of a .jsonl, or stands between blank lines of a .txt")
        yield line


def _prose(path: Path, field: str) -> Texts:
    with plain_bytes(path) as stream:
        document: list[str] = []
        first = True
        characters = 0
        for number, line in enumerate(_lines(path, _opened(stream)), 1):
            if first and line.strip():
                first = False
                _check_no_record(path, line, field)
            if line.isspace():
                if document:
                    yield "".join(document).strip("\n")
                document, characters = [], 0
            else:
                document.append(line)
                characters += len(line)
                if characters > LONGEST:
                    raise InputError(f"{path}:{number}: a document of more than {LONGEST:,} characters ends here or later; "
                                     "separate its parts by blank lines")
        if document:
            yield "".join(document).strip("\n")


def _prose_lines(path: Path, field: str) -> Texts:
    with plain_bytes(path) as stream:
        lines = [line.removesuffix("\n") for line in _lines(path, _opened(stream)) if line.strip()]
        _check_no_record(path, lines[0] if lines else "", field)
        yield from lines


def _check_no_record(path: Path, line: str, field: str) -> None:
    """Refuse records that are named as plain text, braces and all."""
    try:
        record = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return
    if isinstance(record, dict) and isinstance(record.get(field), str):
        raise InputError(f"{path}: is named as plain text and holds JSON records; name it .jsonl")


def _records(path: Path, field: str) -> Texts:
    with plain_bytes(path) as stream:
        text = _opened(stream)
        begin, start = _beginning(text)
        if begin.lstrip().startswith("["):
            for index, record in enumerate(array_items(path, begin, text, start)):
                yield record_text(record, field, f"{path}: record {index}")
            return
        lines = _lines(path, text, start + 1)
        first = begin if begin.endswith("\n") else begin + next(_lines(path, text, start), "")
        if suffix_of(path) == ".json" and not _is_whole(first):
            yield record_text(_parsed(_held(path, chain("\n" * (start - 1), [first], lines)), path), field, f"{path}: record 0")
            return
        for number, line in enumerate(chain([first], lines), start):
            if line.strip():
                yield record_text(_parsed([line], path, number), field, f"{path}:{number}")


def _beginning(text: IO[str]) -> tuple[str, int]:
    """The beginning of the first line that is not blank, and its number; ('', 1) if there is none."""
    number = 1
    while piece := text.readline(BYTES_AT_ONCE):
        if piece.strip():
            return piece, number
        number += piece.endswith("\n")
    return "", 1


def _held(path: Path, lines: Iterable[str]) -> Iterator[str]:
    """Lines that are parsed as one. Raises InputError if they are too many."""
    characters = 0
    for line in lines:
        characters += len(line)
        if characters > LONGEST:
            raise InputError(f"{path}: one JSON document of more than {LONGEST:,} characters; write an array of records, or "
                             ".jsonl, a record a line")
        yield line


def _is_whole(line: str) -> bool:
    """Whether a line is a JSON document, or blank."""
    try:
        return not line.strip() or json.loads(line) is not None
    except (ValueError, RecursionError):
        return False


def _parsed(lines: Iterable[str], path: Path, number: int = 1) -> Any:
    """The JSON document of some lines, the first of which is line `number` of the file. Raises InputError."""
    try:
        return json.loads("".join(lines))
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise not_json(path, number, error) from None


def _table(path: Path, field: str) -> Texts:
    with plain_bytes(path) as stream:
        lines = _lines(path, _opened(stream, newline=""))
        rows = csv.reader(lines, delimiter="\t" if suffix_of(path) == ".tsv" else ",", strict=True)
        names = next(iter(_rows(rows, path, 1)), [])
        if field not in names:
            raise no_field(str(path), field, names)
        column = names.index(field)
        while some := _rows(rows, path, ROWS_AT_ONCE):
            for row in some:
                if len(row) != len(names):
                    raise InputError(f"{path}:{rows.line_num}: about here a row has {len(row)} columns, the first line names "
                                     f"{len(names)}; mend or remove it")
                yield row[column]


def _rows(rows: Any, path: Path, number: int) -> list[list[str]]:
    """The next rows that are not blank, up to `number`, of any length. Raises InputError."""
    limit = csv.field_size_limit(LONGEST)  # of the process: set back before anything else happens
    try:
        return list(islice(filter(None, rows), number))
    except csv.Error as error:
        raise InputError(f"{path}:{rows.line_num}: not {suffix_of(path)[1:].upper()} ({error}); mend the row") from None
    finally:
        csv.field_size_limit(limit)


def _parquet(path: Path, field: str) -> Texts:
    check_regular(path)
    table = pq.ParquetFile(path, buffer_size=BYTES_AT_ONCE)  # else a column of a row group is read as a whole
    _check_column(path, field, table.schema_arrow)
    for batch in table.iter_batches(ROWS_AT_ONCE, columns=[field]):
        yield from batch.column(0).to_pylist()


def _arrow(path: Path, field: str) -> Texts:
    check_regular(path)
    with pa.memory_map(str(path)) as source:
        if source.read(len(ARROW_FILE)) == ARROW_FILE:
            yield from _batches_of_a_file(path, field, source)
            return
        source.seek(max(0, source.size() - len(END_OF_ARROW)))
        if source.read() != END_OF_ARROW:
            raise InputError(f"{path}: ends in the middle of an Arrow stream, or is none; download or copy it anew")
        source.seek(0)
        batches = pa.ipc.open_stream(source)
        _check_column(path, field, batches.schema)
        for batch in batches:
            yield from _texts_of(batch, field)


def _batches_of_a_file(path: Path, field: str, source: pa.MemoryMappedFile) -> Texts:
    batches = pa.ipc.open_file(source)  # which looks for the end of the file by itself
    _check_column(path, field, batches.schema)
    for number in range(batches.num_record_batches):
        yield from _texts_of(batches.get_batch(number), field)


def _texts_of(batch: pa.RecordBatch, field: str) -> Texts:
    column = batch.column(field)
    for start in range(0, len(column), ROWS_AT_ONCE):
        yield from column.slice(start, ROWS_AT_ONCE).to_pylist()


def _check_column(path: Path, field: str, schema: pa.Schema) -> None:
    if field not in schema.names:
        raise no_field(str(path), field, schema.names)
    if schema.names.count(field) > 1:
        raise InputError(f"{path}: has {schema.names.count(field)} columns named '{field}'; rename all but one")
    kind = schema.field(field).type
    if not is_text(kind):
        raise InputError(f"{path}: column '{field}' holds {kind}, not text; {CURE}")


_READERS: dict[str, Callable[[Path, str], Texts]] = {
    **dict.fromkeys(PROSE, _prose), **dict.fromkeys(RECORDS, _records), **dict.fromkeys(TABLES, _table),
    ".parquet": _parquet, ".arrow": _arrow}
