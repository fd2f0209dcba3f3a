"""One file in, its texts out: every format, every compression, every kind of broken line."""

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tsdfm.pipeline.text.documents import Reading, read_documents
from tsdfm.pipeline.text.sources.formats import file_texts, short_texts
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import CorpusConfig

DOCUMENTS = [f"Document {i} says that the number {i * i} is the square of {i}, and it is long enough." for i in range(40)]
COMPRESS: dict[str, Callable] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstandard.compress}


def prose(texts):
    return "\n\n".join(texts)


def lines(texts):
    return "".join(json.dumps({"text": t, "id": i}) + "\n" for i, t in enumerate(texts))


def array(texts):
    return json.dumps([{"id": i, "text": t} for i, t in enumerate(texts)], indent=1)


def table(texts, delimiter=","):
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("id", "text"), *enumerate(texts)])
    return file.getvalue()


CONTENTS: dict[str, Callable] = {"txt": prose, "md": prose, "jsonl": lines, "ndjson": lines, "json": array, "lines.json": lines, "csv": table,
            "tsv": lambda texts: table(texts, "\t")}


def write_zst(path, texts):
    path.write_bytes(zstandard.compress(lines(texts).encode()))


def write_parquet(path, texts):
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), path, row_group_size=7)


WRITERS = {"a.jsonl.zst": write_zst, "a.parquet": write_parquet}


def load(path, **more):
    return list(read_documents(CorpusConfig(path=str(path), **more)))


def refused(path, **more):
    """The one line with which a corpus is refused."""
    with pytest.raises(InputError) as caught:
        load(path, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ file types

@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("name", CONTENTS)
def test_every_format_gives_the_same_documents(tmp_path, name, compression):
    texts = [*DOCUMENTS, "Ünïcödé 日本語 — it must survive, \"quoted\", and so must what follows."]
    data = COMPRESS[compression](CONTENTS[name](texts).encode())
    for path in (tmp_path / f"a.{name}{compression}", tmp_path / f"A.{name}{compression}".upper()):
        path.write_bytes(data)
        assert load(path) == texts


def test_parquet_gives_the_same_documents(tmp_path):
    write_parquet(tmp_path / "a.PARQUET", DOCUMENTS)
    assert load(tmp_path / "a.PARQUET") == DOCUMENTS


def test_the_file_format_of_arrow(tmp_path):
    """Which most libraries write, where `datasets` writes streams."""
    file = tmp_path / "a.arrow"
    rows = pa.table({"id": range(len(DOCUMENTS)), "text": DOCUMENTS})
    with pa.ipc.new_file(file, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=7)
    assert load(file) == DOCUMENTS
    assert "text" in refused(file, text_field="body")
    whole = file.read_bytes()
    for lacking in (8, 400, len(whole) - 8):
        file.write_bytes(whole[:-lacking])
        assert str(file) in refused(file)


def test_a_column_that_is_there_twice_is_named(tmp_path):
    rows = pa.Table.from_arrays([pa.array(DOCUMENTS), pa.array(DOCUMENTS)], names=["text", "text"])
    pq.write_table(rows, tmp_path / "a.parquet")
    assert "2 columns named 'text'" in refused(tmp_path / "a.parquet")


def test_what_datasets_saves_to_disk(tmp_path):
    from datasets import Dataset, DatasetDict

    splits = {"train": Dataset.from_dict({"text": DOCUMENTS}), "test": Dataset.from_dict({"text": ["held back"]})}
    DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved") == DOCUMENTS
    data = next((tmp_path / "saved" / "train").glob("*.arrow"))
    assert load(data) == DOCUMENTS
    assert "text" in refused(data, text_field="body")
    whole = data.read_bytes()
    for lacking in (8, 400, len(whole)):
        data.write_bytes(whole[:-lacking])
        assert str(data) in refused(data)


@pytest.mark.parametrize("compression", COMPRESS)
def test_several_streams_in_one_file_are_read_whole(tmp_path, compression):
    """What appending loggers and parallel compressors write."""
    (tmp_path / f"a.jsonl{compression}").write_bytes(b"".join(COMPRESS[compression](lines([text]).encode()) for text in DOCUMENTS))
    assert load(tmp_path / f"a.jsonl{compression}") == DOCUMENTS


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_compressed_text_whose_name_does_not_say_so_is_told_by_its_content(tmp_path, compression):
    (tmp_path / "a.jsonl").write_bytes(COMPRESS[compression](lines(DOCUMENTS).encode()))
    assert load(tmp_path / "a.jsonl") == DOCUMENTS


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst", ".GZ"])
@pytest.mark.parametrize("data", [b"", b"junk", lines(DOCUMENTS).encode(), zstandard.compress(b"x"), gzip.compress(b"x", mtime=0)])
def test_a_name_that_says_another_compression_is_refused(tmp_path, compression, data):
    if data[:2] in (b"\x1f\x8b", b"\x28\xb5") and compression.lower() in (".gz", ".zst"):
        data = lzma.compress(b"x")
    (tmp_path / f"a.jsonl{compression}").write_bytes(data)
    assert str(tmp_path / f"a.jsonl{compression}") in refused(tmp_path / f"a.jsonl{compression}")


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("lacking", [1, 5, 0.5])
def test_compressed_text_that_ends_early_is_refused(tmp_path, compression, streams, lacking):
    """Story: the download stopped. What is there decodes into whole lines; only the container knows that it is not whole."""
    part = COMPRESS[compression](lines([os.urandom(30).hex() for _ in range(2000)]).encode())
    cut = part[: -lacking] if isinstance(lacking, int) else part[: int(len(part) * lacking)]
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(part * (streams - 1) + cut)
    assert str(path) in refused(path)
    assert "middle of its compressed data" in refused(path)


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
def test_damaged_compressed_text_is_refused(tmp_path, compression):
    data = bytearray(COMPRESS[compression](lines([os.urandom(30).hex() for _ in range(2000)]).encode()))
    if compression == ".zst":  # whose frames have a checksum only where it was asked for
        data[5] ^= 0xFF
    data[len(data) // 2] ^= 0xFF
    (tmp_path / f"a.jsonl{compression}").write_bytes(data)
    assert str(tmp_path / f"a.jsonl{compression}") in refused(tmp_path / f"a.jsonl{compression}")


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize("compression", [".gz", ".bz2", ".xz", ".zst"])
@pytest.mark.parametrize("behind", [
    lambda part: lzma.compress(b"x") if part[:2] == b"\x1f\x8b" else gzip.compress(b"x"), lambda part: b"plain text\n", lambda part: flipped(part, 1),
    lambda part: bytes(8) + b"more"], ids=["another kind", "plain", "damaged", "zeros and more"])
def test_what_stands_behind_a_stream_is_another_or_refused(tmp_path, compression, behind):
    """It was taken for the end of the text: all documents behind it were lost in silence."""
    part = COMPRESS[compression](lines(DOCUMENTS).encode())
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(part * 2 + behind(part))
    message = refused(path)
    assert str(path) in message
    assert "compressed data" in message


@pytest.mark.parametrize(("compression", "middle", "end"), [(".gz", 0, 512), (".xz", 4, 8)])
def test_zero_bytes_that_a_format_allows_behind_a_stream_are_no_fault(tmp_path, compression, middle, end):
    one, other = (COMPRESS[compression](lines(some).encode()) for some in (DOCUMENTS[:7], DOCUMENTS[7:]))
    path = tmp_path / f"a.jsonl{compression}"
    path.write_bytes(one + bytes(middle) + other + bytes(end))
    assert load(path) == DOCUMENTS
    path.write_bytes(one + bytes(5) + other)
    assert "zero bytes" in refused(path)


def test_data_that_is_damaged_is_not_called_text_of_another_encoding(tmp_path):
    """The checksum of a stream stands behind it, and the text is read before."""
    data = lzma.compress(lines([os.urandom(30).hex() for _ in range(2000)]).encode())
    (tmp_path / "a.jsonl.xz").write_bytes(flipped(data, len(data) // 2))
    assert "damaged" in refused(tmp_path / "a.jsonl.xz")


@pytest.mark.parametrize("name", ["a", "a.pdf", "a.gz", "a.tar.gz", "a.jsonl.zip", "a.docx", "a.parquet.gz", "jsonl"])
def test_other_kinds_of_files_are_refused(tmp_path, name):
    data = lines(DOCUMENTS).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    message = refused(tmp_path / name)
    assert str(tmp_path / name) in message


def test_records_that_are_named_as_prose_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("\n" + lines(DOCUMENTS))
    assert ".jsonl" in refused(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_text('{"a": "document"} that begins with a brace')
    assert len(load(tmp_path / "a.txt")) == 1


@pytest.mark.parametrize(("text", "said"), [
    ('{"content": "one"}\n{"content": "two"}\n', ".jsonl"), (array(DOCUMENTS), ".json"), (json.dumps([{"body": "x"}]), ".json"),
    ('{"content": "one"}\nand a text about it', None), ("[MASK] is a token\n{so} is this", None), ("[\n[1]\n", None)])
@pytest.mark.parametrize("read", [file_texts, short_texts])
def test_records_of_other_fields_are_no_prose(tmp_path, read, text, said):
    (tmp_path / "a.txt").write_text(text)
    if said is None:
        assert "\n".join(read(tmp_path / "a.txt", "text")).strip() == text.strip()
        return
    with pytest.raises(InputError, match=f"holds .*; name it {said}"):
        list(read(tmp_path / "a.txt", "text"))


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.txt.gz"])
@pytest.mark.parametrize("text", ["\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440\n" * 9, "text\nHello, world\n" * 9])
def test_utf16_without_a_mark_is_not_read_as_control_characters(tmp_path, name, text):
    """Its bytes are UTF-8 as well: control characters, which cleaning would remove."""
    data = text.encode("utf-16-le")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert "UTF-16" in refused(tmp_path / name)
    (tmp_path / "b.txt").write_text("\x1b[1mbold\x1b[0m " * 20 + "\x01")
    assert len(load(tmp_path / "b.txt")) == 1


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_two_columns_of_one_name_are_refused_in_csv(tmp_path, name):
    (tmp_path / name).write_text("text,text\na,b\n".replace(",", "\t" if name == "a.tsv" else ","))
    assert "2 columns named 'text'" in refused(tmp_path / name)


def test_a_quote_in_a_tsv_swallows_no_rows(tmp_path):
    """Many a .tsv knows no quotes; as `csv` reads it, three rows were one. One that quotes texts of several lines is read."""
    path = tmp_path / "a.tsv"
    path.write_text('id\ttext\n1\t"open\n2\tb\n3\tc"\n')
    assert "a.tsv:4" in refused(path)
    path.write_text('text\n"open\nb\nc"\n')
    assert "rows later" in refused(path)
    path.write_text('id\ttext\n1\t"two\nlines"\n2\t"a ""tab""\tin it"\n')
    assert load(path) == ["two\nlines", 'a "tab"\tin it']


def test_a_blank_line_of_a_single_column_is_an_empty_text(tmp_path):
    (tmp_path / "a.csv").write_text("\ntext\na\n\n\nb\n\n")
    assert list(file_texts(tmp_path / "a.csv", "text")) == ["a", "", "", "b"]
    (tmp_path / "a.csv").write_text("id,text\n1,a\n\n2,b\n")
    assert list(file_texts(tmp_path / "a.csv", "text")) == ["a", "b"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_number_of_many_digits_is_called_so(tmp_path, name):
    record = '{"text": "x", "n": ' + "1" * 5000 + "}"
    (tmp_path / name).write_text(record if name == "a.jsonl" else f"[{record}]")
    assert "too many digits" in refused(tmp_path / name)


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    for name in CONTENTS:
        (tmp_path / f"a.{name}").write_bytes(b"\xef\xbb\xbf" + CONTENTS[name](DOCUMENTS).encode())
        assert load(tmp_path / f"a.{name}") == DOCUMENTS, name


def test_a_single_record_over_several_lines(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"text": DOCUMENTS[0]}, indent=2))
    assert load(tmp_path / "a.json") == DOCUMENTS[:1]


def test_prose_keeps_its_lines_and_indentation(tmp_path):
    (tmp_path / "a.md").write_text("\n\ndef f():\n    return 0\n\n \n\n    return 0\nlast  \n")
    assert load(tmp_path / "a.md") == ["def f():\n    return 0", "    return 0\nlast  "]


def test_long_fields_and_line_breaks_in_csv(tmp_path):
    limit, texts = csv.field_size_limit(), ["x" * 300_000, "two\n\nlines", 'with "quotes", and commas', "NA", "null"]
    (tmp_path / "a.csv").write_text(table(texts))
    assert load(tmp_path / "a.csv") == texts
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(("data", "said"), [
    ("id,text\n1,a,b\n", "3 columns"), ("id,text\n1\n", "1 columns"), ('id,text\n1,"open\n2,b\n', "not CSV"), ("", "it has none"),
    ('id,text\n1,"a"b\n', "not CSV"), ("id;text\n1;a\n", "id;text"),
])
def test_broken_csv_is_refused(tmp_path, data, said):
    (tmp_path / "a.csv").write_text(data)
    assert said in refused(tmp_path / "a.csv")


@pytest.mark.parametrize("kind", [
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())])
def test_every_type_of_text_column(tmp_path, kind):
    column = pa.array([None, *DOCUMENTS, None], pa.string()).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert load(tmp_path / "a.parquet") == DOCUMENTS


@pytest.mark.parametrize("name", [*CONTENTS, "parquet"])
def test_a_text_that_is_null_or_empty_is_alike_everywhere(tmp_path, name):
    texts = ["", *DOCUMENTS, ""] if name.endswith("sv") or CONTENTS.get(name) is prose else [None, *DOCUMENTS, ""]
    path, reading = tmp_path / f"a.{name}", Reading()
    if name == "parquet":
        write_parquet(path, texts)
    else:
        path.write_text(CONTENTS[name](texts))
    assert list(read_documents(CorpusConfig(path=str(path)), reading)) == DOCUMENTS
    if CONTENTS.get(name) is not prose:  # where nothing between blank lines is no document
        assert reading.left_out["null texts"] + reading.left_out["empty texts"] == 2


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_text_field(tmp_path, name):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.table({"body": DOCUMENTS, "id": range(40)}), path)
    else:
        path.write_text(CONTENTS[name[2:]](DOCUMENTS).replace("text", "body"))
    assert load(path, text_field="body") == DOCUMENTS
    message = refused(path)
    assert all(word in message for word in (str(path), "'text'", "body", "id", "--text-field")), message
    if name != "a.csv":  # all of which is text
        assert "--text-field" in refused(path, text_field="id")


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
    "no such field": '{"body": "x"}', "nothing": "null", "a nested text": '{"text": ["x"]}',
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


@pytest.mark.parametrize("data", [b"", b"junk", b"PAR1junkPAR1", bytes(range(100))], ids=["empty", "junk", "magic", "bytes"])
def test_parquet_that_is_none_is_one_line(tmp_path, data):
    (tmp_path / "a.parquet").write_bytes(data)
    assert str(tmp_path / "a.parquet") in refused(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.parquet", "a.json"])
def test_a_file_that_ends_early_is_refused(tmp_path, name):
    texts = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20_000)]
    if name == "a.json":
        (tmp_path / name).write_text(array(texts))
    else:
        write_parquet(tmp_path / name, texts)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    assert str(tmp_path / name) in refused(tmp_path / name)


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


def test_a_path_that_is_not_there(tmp_path):
    assert "no such file" in refused(tmp_path / "nowhere")


def test_compressed_text_is_streamed(tmp_path):
    """Reading takes the memory of a text, not of all of them."""
    rows = [os.urandom(400).hex() for _ in range(4000)]
    for compression in (".gz", ".zst"):
        path = tmp_path / f"a.jsonl{compression}"
        path.write_bytes(COMPRESS[compression](lines(rows).encode()))
        tracemalloc.start()
        assert sum(1 for _ in file_texts(path, "text")) == len(rows)
        assert tracemalloc.get_traced_memory()[1] < sum(map(len, rows)) / 3, compression
        tracemalloc.stop()
