"""Where documents come from: the built-in corpus, files, and Hub datasets.

The built-in corpus (`python`) needs no download: it is the English prose of pydoc's topics and of the docstrings of the
standard library and of every installed distribution, read from their sources without importing them.

`corpus.py` cleans and splits what these give.
"""

import ast
import io
import json
import re
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from tsdfm.schemas.base import InputError, first_line
from tsdfm.schemas.corpus import CorpusConfig
from tsdfm.schemas.regular import check_regular

ZSTD_READ, ZSTD_WINDOW = 1 << 17, 1 << 31  # bytes read at once; the longest window of the format, for --long archives
MIN_CHARACTERS = 60  # shorter documents are labels, not prose
MIN_LETTER_SHARE = 0.93  # letters, spaces and sentence punctuation; below it a paragraph is code or a table
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "node_modules", "site-packages"}
SKIPPED_DISTRIBUTIONS = {"pip", "setuptools", "wheel", "tsdfm-pipeline"}
TEXT_SUFFIXES = (".txt", ".md", ".jsonl", ".jsonl.zst", ".parquet")

_NOT_PROSE = re.compile(r"^\w+ ?:|--|>>>|::|[={}<>|\\@#^~\[\]]|``\w*\(|^\s*[-*+:.\d]|\s\d+\.\s|https?:")
_MARKUP = re.compile(r":[\w:+.]+:`~?!?([^`<]+?)(?:\s*<[^`]*>)?`|``([^`]+)``|`([^`]+)`_*|\*\*([^*]+)\*\*|\*([^*\s]+)\*")


def prose(docstring: str) -> str:
    """The paragraphs of a docstring that read as English sentences, one per line; markup removed, '' if none do."""
    kept = []
    for paragraph in re.split(r"\n\s*\n", docstring):
        line = " ".join(_MARKUP.sub(lambda m: next(g for g in m.groups() if g), paragraph).split())
        if len(line) < MIN_CHARACTERS or not line[0].isupper() or line[-1] not in ".!?" or not line.isascii():
            continue
        plain = sum(c.isalpha() or c in " .,;'-()" for c in line)
        if plain < MIN_LETTER_SHARE * len(line) or _NOT_PROSE.search(line):
            continue
        kept.append(line)
    return "\n".join(kept)


def _docstrings(source: bytes) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The module and all that may hold a definition, in the order of `ast.walk`, which would visit every expression, too."""
    nodes: deque[ast.AST] = deque([tree])
    while nodes:
        node = nodes.popleft()
        for field in ("body", "cases", "handlers", "orelse", "finalbody"):
            nodes.extend(getattr(node, field, ()))
        yield node


def python_distributions() -> list[Distribution]:
    """The installed distributions that the built-in corpus reads: all but this project and the installers."""
    by_name = {d.name.lower(): d for d in distributions() if d.name.lower() not in SKIPPED_DISTRIBUTIONS}
    return [by_name[name] for name in sorted(by_name)]


def _python_sources() -> Iterator[Path]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    yield from sorted(p for p in stdlib.rglob("*.py") if not SKIPPED_FOLDERS & set(p.relative_to(stdlib).parts))
    for distribution in python_distributions():
        for file in sorted(distribution.files or (), key=str):
            if file.suffix == ".py" and not SKIPPED_FOLDERS & set(file.parts):
                yield Path(str(distribution.locate_file(file)))


def python_documents() -> Iterator[str]:
    """Prose of pydoc's topics and of every docstring of the standard library and the installed distributions."""
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        yield prose(topic)
    for path in _python_sources():
        try:
            source = path.read_bytes()
        except OSError:
            continue  # a file that a distribution lists and doesn't ship
        for docstring in _docstrings(source):
            yield prose(docstring)


def _record_text(record: object, field: str, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(field), str):
        raise InputError(f"{where}: no text field '{field}'; name the right one with corpus.text_field")
    return str(record[field])


def _jsonl(lines: Iterable[str], field: str, path: Path) -> Iterator[str]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                raise InputError(f"{path}:{number}: not JSON ({reason}); mend or remove the line") from None
            yield _record_text(record, field, f"{path}:{number}")


class _Zstd(io.RawIOBase):
    """The plain bytes of a zstd file of any number of frames. Raises InputError where it ends in the middle of one."""

    def __init__(self, raw: IO[bytes], path: Path) -> None:
        self._raw, self._path, self._ready = raw, path, b""
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with the next bytes; 0 at the end."""
        while not self._ready:
            rest = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            data = rest or self._raw.read(ZSTD_READ)
            if not data:
                if self._frame is not None and not self._frame.eof:
                    raise InputError(f"{self._path}: ends in the middle of its compressed data; download or copy it anew")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
            self._ready = self._frame.decompress(data)
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count


def _file_documents(path: Path, field: str) -> Iterator[str]:
    try:
        check_regular(path)
        if path.name.endswith(".jsonl.zst"):
            with path.open("rb") as raw:
                yield from _jsonl(io.TextIOWrapper(io.BufferedReader(_Zstd(raw, path)), "utf-8"), field, path)
        elif path.name.endswith(".jsonl"):
            with path.open(encoding="utf-8") as lines:
                yield from _jsonl(lines, field, path)
        elif path.name.endswith(".parquet"):
            table = pq.ParquetFile(path)
            if field not in table.schema_arrow.names:
                raise InputError(f"{path}: no column '{field}'; it has {', '.join(table.schema_arrow.names)}")
            kind = table.schema_arrow.field(field).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise InputError(f"{path}: column '{field}' holds {kind}, not text; name the right one with corpus.text_field")
            for batch in table.iter_batches(columns=[field]):
                yield from (str(text) for text in batch.column(0).to_pylist() if text)
        else:
            yield from re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from None
    except (zstandard.ZstdError, pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: cannot be read ({error}); check the file") from None


def _hub_documents(name: str, field: str) -> Iterator[str]:
    from datasets import load_dataset

    repo, _, split = name.partition(":")
    try:
        rows = load_dataset(repo, split=split or "train", streaming=True)
        yield from (_record_text(row, field, f"hub:{name}") for row in rows)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"hub:{name}: cannot be loaded ({first_line(error)}); check the name, the split and the network"
                         ) from None


def raw_documents(config: CorpusConfig) -> Iterator[str]:
    """The documents of a corpus as they are, in order. Raises InputError if there is no such corpus, or it can't be read."""
    if config.path == "python":
        yield from python_documents()
        return
    if config.path.startswith("hub:"):
        yield from _hub_documents(config.path.removeprefix("hub:"), config.text_field)
        return
    path = Path(config.path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.name.endswith(TEXT_SUFFIXES))
        if not files:
            raise InputError(f"{path}: no {', '.join(TEXT_SUFFIXES)} files in this folder; point corpus.path at your text")
    elif path.is_file():
        files = [path]
    else:
        raise InputError(f"corpus {path}: no such file or folder; give a path, 'python' or 'hub:NAME'")
    for file in files:
        yield from _file_documents(file, config.text_field)
