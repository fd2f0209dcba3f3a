"""The corpus `python`: which docstrings are prose, and what was read before is not read again, unless something has changed."""

import argparse
import ast
import asyncio.base_events
import inspect
import os
import subprocess
import sys

import pytest

from tsdfm.pipeline.text.documents import read_documents
from tsdfm.pipeline.text.sources import python
from tsdfm.pipeline.text.sources.python import prose, python_documents
from tsdfm.schemas.corpus import CorpusConfig

KEPT = [
    ("Return the number of seconds since the epoch, as a float that may have a fraction.", None),
    ("Wrap a paragraph that runs\n    over two lines, for the blanks of an\n    indented docstring are not its words.",
     "Wrap a paragraph that runs over two lines, for the blanks of an indented docstring are not its words."),
    ("Create a new :class:`~pathlib.Path` from ``parts``, which may hold *any* number of `str` objects.",
     "Create a new Path from parts, which may hold any number of str objects."),
    ("Is this the end of it all, or merely another beginning that looks like one?", None),
]
DROPPED = [
    "Too short.", "no capital letter at the beginning of this otherwise ordinary English sentence, so drop it.",
    "This sentence has no full stop at its end, although it is long enough to be kept",
    ">>> print('This is a doctest, not a sentence, however long it may happen to be.')",
    "Parameters: x = 3 and y = 4 give the value of the function, which is then returned to you.",
    "See https://example.org for all the details that nobody has written down in this docstring.",
    "Naïve text that is not plain ASCII is dropped, though it reads as a perfectly good sentence.",
    "1. The first item of a list that continues with a second item, and perhaps with a third one.",
    "A table of 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 numbers, nothing else.",
    "", "\n\n\n",
]


@pytest.mark.parametrize(("docstring", "wanted"), KEPT)
def test_prose_keeps_sentences(docstring, wanted):
    if wanted is None:
        wanted = docstring
    got = prose(docstring)
    # the first name of a cross-reference may keep or lose its module path; the words around it stay
    assert got.replace("pathlib.Path", "Path") == wanted


@pytest.mark.parametrize("docstring", DROPPED)
def test_prose_drops_what_is_not(docstring):
    assert prose(docstring) == ""


def test_prose_takes_paragraphs_one_by_one():
    good = "This paragraph is an ordinary English sentence, and so it is kept as it stands."
    assert prose(f"{good}\n\n    >>> f(x)\n\n{good[:-1]}, too.") == f"{good}\n{good[:-1]}, too."


def test_docstrings_are_read_without_importing(tmp_path):
    """Module, class, function and async function; a file that is not Python is passed over, and nothing is run."""
    sentence = "This docstring of a {} is an ordinary English sentence, which is long enough to be kept."
    (tmp_path / "a.py").write_text(
        f'"""{sentence.format("module")}"""\nraise SystemExit\nclass A:\n    """{sentence.format("class")}"""\n'
        f'    async def f(self):\n        """{sentence.format("coroutine")}"""\n        "{sentence.format("string")}"\n')
    (tmp_path / "b.py").write_bytes(b"def broken(:\n\x00")
    sources = [tmp_path / "a.py", tmp_path / "b.py", tmp_path / "gone.py"]
    found = [d for d in python.documents_of(sources) if "ordinary English sentence" in d]
    assert found == [sentence.format(kind) for kind in ("module", "class", "coroutine")]


def test_definitions_are_found_wherever_they_stand():
    """In every kind of block, in the order of ast.walk (the documents' order decides which half they fall in)."""
    nested = """
if a:
    def f(): pass
elif b:
    class G:
        def g(self): pass
else:
    async def h(): pass
for x in y:
    def i(): pass
else:
    def j(): pass
while a:
    def k(): pass
with a:
    def l(): pass
try:
    def m(): pass
except E:
    def n(): pass
else:
    def o(): pass
finally:
    def p(): pass
match a:
    case 1:
        def q(): pass
    case _ if (lambda: 1)():
        class R: pass
"""
    kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for source in (nested, *(inspect.getsource(module) for module in (ast, inspect, argparse, asyncio.base_events))):
        tree = ast.parse(source)
        found = [node for node in python._statements(tree) if isinstance(node, kinds)]
        assert found == [node for node in ast.walk(tree) if isinstance(node, kinds)]
        assert len(found) > 10


@pytest.mark.slow
def test_it_is_there(monkeypatch):
    """The standard library alone gives thousands of documents with no download; no code among them, none twice."""
    monkeypatch.setattr(python, "python_distributions", list)
    documents = list(read_documents(CorpusConfig(path="python")))
    assert len(documents) > 2000
    assert not any(">>>" in d or "://" in d for d in documents)
    assert len(set(documents)) == len(documents)
    assert any("garbage collect" in d.lower() for d in documents)


# ------------------------------------------------------------------ what was read before

@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and one source file in place of all installed ones."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "a.py"
    source.write_text('"""This docstring of a module is an ordinary English sentence, which is long enough to be kept."""\n')
    monkeypatch.setattr(python, "_python_sources", lambda: [source])
    monkeypatch.setattr(python, "python_distributions", list)
    return tmp_path / "cache" / "tsdfm-pipeline"


@pytest.fixture
def reads(monkeypatch):
    """How often the sources were read."""
    counted, read = [], python.documents_of
    monkeypatch.setattr(python, "documents_of", lambda *arguments: counted.append(1) or read(*arguments))
    return counted


def test_it_is_read_once_and_told_as_it_is_read(cache, reads):
    heard = []
    first = python_documents(lambda *told: heard.append(told))
    assert heard == [("reading the corpus python", 0, 1, "source files")]
    assert python_documents() == first
    assert any("ordinary English sentence" in document for document in first)
    assert len(reads) == 1


def test_it_is_read_anew_when_a_source_changes(cache, reads, tmp_path):
    before = python_documents()
    (tmp_path / "a.py").write_text('"""This docstring of a module says now something else, which is long enough to be kept."""\n')
    assert python_documents() != before
    assert len(reads) == 2


@pytest.mark.parametrize("fault", ["flipped", "cut", "empty", "folder", "unreadable", "no folder can be made", "no home"])
def test_no_fault_of_the_cache_is_one_of_the_corpus(cache, reads, fault, monkeypatch):
    first = python_documents()
    (file,) = cache.iterdir()
    data = file.read_bytes()
    if fault == "flipped":
        file.write_bytes(data[:60] + bytes([data[60] ^ 1]) + data[61:])
    elif fault in ("cut", "empty"):
        file.write_bytes(data[:60] if fault == "cut" else b"")
    elif fault in ("folder", "unreadable"):
        file.unlink()
        file.mkdir()
    elif fault == "no folder can be made":
        monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr("pathlib.Path.home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert python_documents() == first
    assert len(reads) == 2


def test_processes_at_the_same_time_give_the_same(cache, tmp_path):
    code = f"""
import sys
from pathlib import Path
from tsdfm.pipeline.text.sources import python
python._python_sources = lambda: [Path({str(tmp_path / 'a.py')!r})]
print(hash(tuple(python.python_documents())))"""
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0, 0]
    assert len(list(cache.iterdir())) == 1
