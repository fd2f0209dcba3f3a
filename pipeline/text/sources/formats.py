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

from tsdfm.pipeline.text.sources.columns import arrow_texts, parquet_texts
from tsdfm.pipeline.text.sources.compression import SUFFIXES, bare_name, plain_bytes
from tsdfm.pipeline.text.sources.fields import ROWS_AT_ONCE, Texts, no_field, record_text
from tsdfm.pipeline.text.sources.json_array import array_items, not_json
from tsdfm.schemas.base import InputError, first_line

PROSE, RECORDS, TABLES = (".txt", ".text", ".md", ".markdown", ".rst"), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
COLUMNS = (".parquet", ".arrow")
KNOWN = (*PROSE, *RECORDS, *TABLES, *COLUMNS)
LONGEST = 1 << 26  # characters of a document, and of a line: it is held as a whole, and its tokens take many times that
BYTES_AT_ONCE = 1 << 20  # characters of a line, read to see what they are


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


_READERS: dict[str, Callable[[Path, str], Texts]] = {
    **dict.fromkeys(PROSE, _prose), **dict.fromkeys(RECORDS, _records), **dict.fromkeys(TABLES, _table),
    ".parquet": parquet_texts, ".arrow": arrow_texts}
