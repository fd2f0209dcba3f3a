"""Tables of columns: which column is meant, and files in a row, of which one alone would be read."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsdfm.pipeline.text.sources.columns import arrow_texts, parquet_texts
from tsdfm.pipeline.text.sources.formats import file_texts
from tsdfm.schemas.base import InputError

DOCUMENTS = [f"Document {i} says that the number {i * i} is the square of {i}." for i in range(40)]


def rows(texts):
    return pa.table({"text": pa.array(texts, pa.string())})


def arrow(texts, *, stream, closed=True):
    data, table = io.BytesIO(), rows(texts)
    writer = (pa.ipc.new_stream if stream else pa.ipc.new_file)(data, table.schema)
    writer.write_table(table, max_chunksize=7)
    if closed:
        writer.close()
    return data.getvalue()


def parquet(texts, **how):
    data = io.BytesIO()
    pq.write_table(rows(texts), data, row_group_size=7, **how)
    return data.getvalue()


@pytest.mark.parametrize("cut", [1, 7, 20, 40])
def test_arrow_streams_in_a_row_are_all_read(tmp_path, cut):
    path = tmp_path / "a.arrow"
    path.write_bytes(arrow(DOCUMENTS[:cut], stream=True) + arrow(DOCUMENTS[cut:], stream=True))
    assert list(file_texts(path, "text")) == DOCUMENTS
    path.write_bytes(arrow(DOCUMENTS[:cut], stream=True, closed=False) + arrow(DOCUMENTS[cut:], stream=True))
    with pytest.raises(InputError, match=r"a\.arrow"):
        list(file_texts(path, "text"))


@pytest.mark.parametrize("kind", ["arrow", "parquet", "indexed"])
@pytest.mark.parametrize("sizes", [(40, 40), (40, 1), (1, 40), (40, 0), (0, 40), (5, 5, 5)])
def test_files_in_a_row_are_refused(tmp_path, kind, sizes):
    path = tmp_path / f"a.{'arrow' if kind == 'arrow' else 'parquet'}"

    def made(texts):
        return arrow(texts, stream=False) if kind == "arrow" else parquet(texts, write_page_index=kind == "indexed")

    path.write_bytes(b"".join(made(DOCUMENTS[:size]) for size in sizes))
    with pytest.raises(InputError, match=r"a\.[a-z]+: holds several .* files in a row"):
        list(file_texts(path, "text"))
    for size in sizes:
        path.write_bytes(made(DOCUMENTS[:size]))
        assert list(file_texts(path, "text")) == DOCUMENTS[:size]


def test_a_text_that_looks_like_the_seam_of_two_files_is_text(tmp_path):
    texts = [f"{i} PAR1PAR1" * 3 for i in range(40)]
    (tmp_path / "a.parquet").write_bytes(parquet(texts, write_page_index=True, compression="none", use_dictionary=False))
    assert list(parquet_texts(tmp_path / "a.parquet", "text")) == texts


@pytest.mark.parametrize("field", ["a.b", "c"])
def test_a_column_is_taken_by_its_exact_name(tmp_path, field):
    """Parquet names the field b of a column a of records a.b, too."""
    table = pa.table({"a": [{"b": "of the record"}], "a.b": ["of the column"], "c.d": ["another"], "c": ["of the column"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert list(parquet_texts(tmp_path / "a.parquet", field)) == ["of the column"]
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    assert list(arrow_texts(tmp_path / "a.arrow", field)) == ["of the column"]
