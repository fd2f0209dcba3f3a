"""Text in, clean documents out: every file type, every kind of broken line, the split, and the prose filter."""

import argparse
import ast
import asyncio.base_events
import hashlib
import inspect
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tsdfm.pipeline.text import documents as corpus
from tsdfm.pipeline.text.corpus import clean, held_out, load_documents, select, split_of
from tsdfm.pipeline.text.documents import prose
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import CorpusConfig

DOCUMENTS = [f"Document {i} says that the number {i * i} is the square of {i}, and it is long enough." for i in range(40)]


def write_txt(path, texts):
    path.write_text("\n\n".join(texts), encoding="utf-8")


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")


def write_zst(path, texts):
    lines = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
    path.write_bytes(zstandard.compress(lines))


def write_zst_frames(path, texts):
    """Many frames in one file: what pzstd and appending loggers write."""
    path.write_bytes(b"".join(zstandard.compress(json.dumps({"text": t}).encode() + b"\n") for t in texts))


def write_parquet(path, texts):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=7)


WRITERS = {"a.txt": write_txt, "a.md": write_txt, "a.jsonl": write_jsonl, "a.jsonl.zst": write_zst,
           "frames.jsonl.zst": write_zst_frames, "a.parquet": write_parquet}


def load(path, **more):
    return load_documents(CorpusConfig(path=str(path), **more))


def refused(path, **more):
    """The one line with which a corpus is refused."""
    with pytest.raises(InputError) as caught:
        load(path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ file types

@pytest.mark.parametrize("name", WRITERS)
def test_every_file_type_gives_the_same_documents(tmp_path, name):
    texts = [*DOCUMENTS, "Ünïcödé 日本語 — it must survive every container, and be long enough to count as a document."]
    WRITERS[name](tmp_path / name, texts)
    assert load(tmp_path / name) == texts


def test_a_folder_is_its_files_in_order_of_their_paths(tmp_path):
    (tmp_path / "sub").mkdir()
    write_parquet(tmp_path / "sub" / "z.parquet", DOCUMENTS[30:])
    write_jsonl(tmp_path / "b.jsonl", DOCUMENTS[10:20])
    write_txt(tmp_path / "a.txt", DOCUMENTS[:10])
    write_zst(tmp_path / "c.jsonl.zst", DOCUMENTS[20:30])
    (tmp_path / "notes.json").write_text("{}")  # not a type of ours: left alone
    assert load(tmp_path) == DOCUMENTS


def test_text_field(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t, "text": 3}) + "\n" for t in DOCUMENTS))
    pq.write_table(pa.table({"body": DOCUMENTS}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.jsonl", text_field="body") == DOCUMENTS
    assert load(tmp_path / "a.parquet", text_field="body") == DOCUMENTS
    assert "a.jsonl:1" in refused(tmp_path / "a.jsonl")
    message = refused(tmp_path / "a.parquet")
    assert "text" in message
    assert "body" in message


def test_windows_line_ends_and_no_last_newline(tmp_path):
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(json.dumps({"text": t}) for t in DOCUMENTS).encode())
    (tmp_path / "a.txt").write_bytes("\r\n\r\n".join(DOCUMENTS).encode())
    assert load(tmp_path / "a.jsonl") == load(tmp_path / "a.txt") == DOCUMENTS


def test_blank_lines_between_records_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" + "\n\n".join(json.dumps({"text": t}) for t in DOCUMENTS) + "\n  \n")
    assert load(tmp_path / "a.jsonl") == DOCUMENTS


def test_a_line_separator_inside_a_record_does_not_split_it(tmp_path):
    text = "One record may hold U+2028, a line separator,\u2028 which JSON allows in a string and which ends no line."
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert load(tmp_path / "a.jsonl") == [text]


# ------------------------------------------------------------------ broken input

BROKEN_LINES = {
    "not json": "this is no record", "cut": '{"text": "half a', "a list": "[1, 2]", "a number": "3", "a string": '"text"',
    "no such field": '{"body": "x"}', "null": '{"text": null}', "a nested text": '{"text": ["x"]}',
    "bad escape": '{"text": "\\x"}', "deeply nested": "[" * 100_000,
}


@pytest.mark.parametrize("container", ["jsonl", "jsonl.zst"])
@pytest.mark.parametrize("broken", BROKEN_LINES)
def test_a_malformed_line_is_named(tmp_path, container, broken):
    """Two good lines, a blank one, and the broken one: line 4."""
    lines = [json.dumps({"text": t}) for t in DOCUMENTS[:2]] + ["", BROKEN_LINES[broken], json.dumps({"text": "after"})]
    data = ("\n".join(lines) + "\n").encode()
    path = tmp_path / f"a.{container}"
    path.write_bytes(zstandard.compress(data) if container.endswith("zst") else data)
    assert f"{path}:4" in refused(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.zst"])
def test_text_that_is_not_utf8_is_one_line(tmp_path, name):
    data = b'{"text": "caf\xe9"}\n' * 3
    (tmp_path / name).write_bytes(zstandard.compress(data) if name.endswith("zst") else data)
    message = refused(tmp_path / name)
    assert str(tmp_path / name) in message
    assert "UTF-8" in message


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
@pytest.mark.parametrize("data", [b"", b"junk", b"PAR1junkPAR1", bytes(range(100))], ids=["empty", "junk", "magic", "bytes"])
def test_a_container_that_is_none_is_one_line(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    assert str(tmp_path / name) in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.parquet"])
def test_a_truncated_container_is_refused(tmp_path, name):
    """Story: the download stopped half way. Training on what is left would go unnoticed."""
    digests = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    rows = [f"Line {i} of a long file, {digest}, whose end is missing." for i, digest in enumerate(digests)]
    WRITERS[name](tmp_path / name, rows)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert str(tmp_path / name) in refused(tmp_path / name)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_zst_that_ends_between_two_lines_is_refused(tmp_path, frames):
    """What is there decodes into whole lines; only the frame knows that it is not whole."""
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in DOCUMENTS]
    before = b"".join(zstandard.compress(line) for line in lines[: frames - 1])
    compressor = zstandard.ZstdCompressor().compressobj()
    part = compressor.compress(b"".join(lines)) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "a.jsonl.zst").write_bytes(before + part)
    assert "middle of its compressed data" in refused(tmp_path / "a.jsonl.zst")
    (tmp_path / "a.jsonl.zst").write_bytes(before + part + compressor.flush())
    assert len(load(tmp_path / "a.jsonl.zst")) == len(DOCUMENTS)


def test_a_zst_of_a_long_window_is_read(tmp_path):
    """As `zstd --long=31` writes it, which large public corpora are."""
    parameters = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    lines = b"".join(json.dumps({"text": text}).encode() + b"\n" for text in DOCUMENTS)
    (tmp_path / "a.jsonl.zst").write_bytes(compressor.compress(lines) + compressor.flush())
    assert len(load(tmp_path / "a.jsonl.zst")) == len(DOCUMENTS)


def test_a_parquet_column_that_is_not_text_is_refused(tmp_path):
    pq.write_table(pa.table({"text": [[1, 2, 3] * 40] * 3}), tmp_path / "a.parquet")
    assert "text" in refused(tmp_path / "a.parquet")


def test_nulls_in_a_parquet_column_are_skipped(tmp_path):
    pq.write_table(pa.table({"text": [None, *DOCUMENTS, None, ""]}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet") == DOCUMENTS


def test_a_path_that_is_not_there(tmp_path):
    assert "no such file" in refused(tmp_path / "nowhere")


def test_a_folder_without_text(tmp_path):
    (tmp_path / "a.csv").write_text("x")
    assert "no .txt" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", " \n\n ", "Too short.", "\n\n".join(f"Short {i}." for i in range(100))])
def test_nothing_long_enough_is_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    assert "60 characters" in refused(tmp_path / "a.txt")


# ------------------------------------------------------------------ cleaning and duplicates

@pytest.mark.parametrize(("raw", "wanted"), [
    ("  a  b \t c  ", "a b c"), ("a\r\nb", "a\nb"), ("a\n\n\n\nb", "a\n\nb"), ("a\x00b\x07\x1bc\u200bd\ufeff", "abcd"),
    ("e\u0301", "é"), ("e\u200d\u0301", "é"), ("日本", "日本"), ("\ud800x", "x"), ("", ""), ("a\u00a0b", "a\u00a0b"),
])
def test_clean(raw, wanted):
    assert clean(raw) == wanted


@pytest.mark.parametrize("gap", ["\r", "\x0b", "\x0c", "\x85"])
def test_a_control_character_that_separates_does_not_join_words(gap):
    """A bare carriage return, a vertical tab, a form feed or NEL ends a line; the words about it stay two."""
    assert clean(f"one{gap}two").split() == ["one", "two"]


@given(text=st.text())
def test_clean_is_idempotent_and_encodable(text):
    once = clean(text)
    assert clean(once) == once
    once.encode("utf-8")


def test_duplicate_paragraphs_are_dropped_everywhere(tmp_path):
    """The second of two equal paragraphs goes, whatever its case or spacing, within a document and across files."""
    a, b, c = DOCUMENTS[:3]
    write_jsonl(tmp_path / "1.jsonl", [f"{a}\n{b}", f"{b.upper()}\n{c}"])
    write_jsonl(tmp_path / "2.jsonl", [f"  {c.replace(' ', '   ')}\n{DOCUMENTS[3]}", a])
    assert load(tmp_path) == [f"{a}\n{b}", c, DOCUMENTS[3]]


# ------------------------------------------------------------------ split

def test_the_split_is_a_function_of_the_text():
    """Recomputed from sha256; the same whatever surrounds the text and in whichever order it comes."""
    for text in DOCUMENTS:
        bucket = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        wanted = "held_out" if bucket % 100 < 2 else "first" if (bucket // 100) % 2 else "second"
        assert split_of(text) == wanted
    assert set(select(DOCUMENTS[::-1], "first")) == set(select(DOCUMENTS, "first"))
    assert select(DOCUMENTS[:7], "second") == [t for t in select(DOCUMENTS, "second") if t in DOCUMENTS[:7]]


@given(texts=st.lists(st.text(), unique=True))
def test_the_parts_are_disjoint_and_complete(texts):
    first, second, test, everything = select(texts, "first"), select(texts, "second"), held_out(texts), select(texts, "all")
    assert sorted([*first, *second, *test]) == sorted(texts)
    assert sorted([*first, *second]) == sorted(everything)
    assert everything == [t for t in texts if t in set(everything)]  # in order


def test_the_parts_have_their_sizes():
    texts = [f"text {i}" for i in range(20_000)]
    assert len(held_out(texts)) == pytest.approx(400, abs=80)
    assert len(select(texts, "first")) == pytest.approx(9800, abs=300)
    assert len(select(texts, "second")) == pytest.approx(9800, abs=300)


# ------------------------------------------------------------------ prose of docstrings

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


def test_docstrings_are_read_without_importing(tmp_path, monkeypatch):
    """Module, class, function and async function; a file that is not Python is passed over, and nothing is run."""
    sentence = "This docstring of a {} is an ordinary English sentence, which is long enough to be kept."
    (tmp_path / "a.py").write_text(
        f'"""{sentence.format("module")}"""\nraise SystemExit\nclass A:\n    """{sentence.format("class")}"""\n'
        f'    async def f(self):\n        """{sentence.format("coroutine")}"""\n        "{sentence.format("string")}"\n')
    (tmp_path / "b.py").write_bytes(b"def broken(:\n\x00")
    monkeypatch.setattr(corpus, "_python_sources", lambda: [tmp_path / "a.py", tmp_path / "b.py", tmp_path / "gone.py"])
    found = [d for d in corpus.python_documents() if "ordinary English sentence" in d]
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
        found = [node for node in corpus._statements(tree) if isinstance(node, kinds)]
        assert found == [node for node in ast.walk(tree) if isinstance(node, kinds)]
        assert len(found) > 10


@pytest.mark.slow
def test_the_built_in_corpus_is_there(monkeypatch):
    """The standard library alone gives thousands of documents with no download; no code among them, none twice."""
    monkeypatch.setattr(corpus, "python_distributions", list)
    documents = load("python")
    assert len(documents) > 2000
    assert not any(">>>" in d or "://" in d for d in documents)
    assert len(set(documents)) == len(documents)
    assert any("garbage collect" in d.lower() for d in documents)


def test_zst_is_streamed(tmp_path, monkeypatch):
    """A file is not read whole: the first document comes before the last line has been decompressed."""
    write_zst(tmp_path / "a.jsonl.zst", [f"{i} {os.urandom(40).hex()}" for i in range(20_000)])
    read = []

    class Counting(io.TextIOWrapper):
        def __next__(self):
            read.append(1)
            return super().__next__()

    monkeypatch.setattr(io, "TextIOWrapper", Counting)
    documents = corpus._file_documents(tmp_path / "a.jsonl.zst", "text")
    next(documents)
    assert len(read) == 1
