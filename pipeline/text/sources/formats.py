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
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path
from typing import IO, Any

from tsdfm.pipeline.text.sources.columns import arrow_texts, parquet_texts
from tsdfm.pipeline.text.sources.compression import SUFFIXES, bare_name, plain_bytes
from tsdfm.pipeline.text.sources.fields import ROWS_AT_ONCE, Texts, check_single, record_text
from tsdfm.pipeline.text.sources.json_array import array_items, not_json
from tsdfm.schemas.base import InputError, first_line

PROSE, RECORDS, TABLES = (".txt", ".text", ".md", ".markdown", ".rst"), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow")
KNOWN = (*PROSE, *RECORDS, *TABLES, *COLUMNS)
LONGEST = 1 << 26  # characters of a document, and of a line: it is held as a whole, and its tokens take many times that
PEEKED, MANY_CONTROLS = 1 << 12, 8  # bytes at the beginning, and control characters that are no accident
CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\x1b"})
BYTES_AT_ONCE = 1 << 20  # characters of a line, read to see what they are


_ARRAY = re.compile(r'\s*\[\s*\{\s*("|\Z)')  # the beginning of one of records


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


def _opened(path: Path, stream: IO[bytes], newline: str | None = None) -> io.TextIOWrapper:
    """A file's text. Raises InputError where it begins as UTF-16 does, in which every second byte may be a control."""
    begin = stream.peek(PEEKED) if isinstance(stream, io.BufferedReader) else b""
    controls = len(begin) - len(begin.translate(None, CONTROLS))
    if controls >= MANY_CONTROLS and controls > len(begin) / 4:
        raise InputError(f"{path}: {controls / len(begin):.0%} of its beginning is control characters, as if it were UTF-16; "
                         "convert it to UTF-8 first")
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
        begin: list[str] = []
        characters = 0
        for number, line in enumerate(_lines(path, _opened(path, stream)), 1):
            if len(begin) < 2 and line.strip():
                begin.append(line)
                _check_no_record(path, begin, field)
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
        lines = [line.removesuffix("\n") for line in _lines(path, _opened(path, stream)) if line.strip()]
        for number in (1, 2):
            _check_no_record(path, lines[:number], field)
        yield from lines


def _check_no_record(path: Path, begin: list[str], field: str) -> None:
    """Refuse records that are named as plain text, braces and all; `begin`: the first lines that are not blank.

    They are told by a first record with the field, or two in a row, or the beginning of an array of them.
    """
    records = [_record(line) for line in begin]
    if _ARRAY.match("\n".join(begin)):
        raise InputError(f"{path}: is named as plain text and holds a JSON array of records; name it .json")
    if records and (isinstance(records[0].get(field), str) or (len(records) > 1 and all(records))):
        raise InputError(f"{path}: is named as plain text and holds JSON records; name it .jsonl")


def _record(line: str) -> dict[str, Any]:
    """The record that a line is; {} if it is none."""
    try:
        record = json.loads(line) if line.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _records(path: Path, field: str) -> Texts:
    with plain_bytes(path) as stream:
        text = _opened(path, stream)
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
        lines, delimiter = _lines(path, _opened(path, stream, newline="")), "\t" if suffix_of(path) == ".tsv" else ","
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        names = next(iter(_rows(rows, filter(None, rows), path, 1)), [])
        check_single(str(path), field, names)
        column, blank = names.index(field), 0
        while some := _rows(rows, rows, path, ROWS_AT_ONCE):
            for row in some:
                if not row:  # a blank line: of a single column it is an empty text, unless nothing follows
                    blank += len(names) == 1
                    continue
                yield from [""] * blank
                blank = 0
                if len(row) != len(names):
                    raise InputError(f"{path}:{rows.line_num}: about here a row has {len(row)} columns, the first line names "
                                     f"{len(names)}; mend or remove it")
                if delimiter == "\t" and any("\n" in cell and ("\t" in cell or len(names) == 1) for cell in row):
                    # Many a .tsv knows no quotes; where it does, a text of several lines has no tabs.
                    raise InputError(f"{path}:{rows.line_num}: about here a quote that begins a field is closed only some rows "
                                     "later; double it and quote the field, or write a .csv")
                yield row[column]


def _rows(reader: Any, rows: Iterator[list[str]], path: Path, number: int) -> list[list[str]]:
    """The next rows that a reader gives, up to `number`, of any length. Raises InputError."""
    limit = csv.field_size_limit(LONGEST)  # of the process: set back before anything else happens
    try:
        return list(islice(rows, number))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not {suffix_of(path)[1:].upper()} ({error}); mend the row") from None
    finally:
        csv.field_size_limit(limit)


_READERS: dict[str, Callable[[Path, str], Texts]] = {
    **dict.fromkeys(PROSE, _prose), **dict.fromkeys(RECORDS, _records), **dict.fromkeys(TABLES, _table),
    ".parquet": parquet_texts, ".arrow": arrow_texts}
