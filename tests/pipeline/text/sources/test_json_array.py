"""Arrays are read item by item: the items of the whole, whatever is cut where, and faults by their line."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsdfm.pipeline.text.sources import formats, json_array
from tsdfm.pipeline.text.sources.formats import file_texts
from tsdfm.pipeline.text.sources.json_array import array_items
from tsdfm.schemas.base import InputError

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    st.text(max_size=4), inner, max_size=3), max_leaves=8)


@given(items=st.lists(VALUES.filter(lambda value: not isinstance(value, int) or isinstance(value, bool)), max_size=6),
       indent=st.none() | st.integers(0, 2), ascii=st.booleans(), begin=st.integers(1, 9), piece=st.integers(1, 40))
def test_items_are_those_of_the_whole(items, indent, ascii, begin, piece):
    text = json.dumps(items, indent=indent, ensure_ascii=ascii)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(json_array, "CHARACTERS_AT_ONCE", piece)
        assert list(array_items(Path("a.json"), text[:begin], io.StringIO(text[begin:], newline=""), 1)) == items


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize(("text", "line", "reason"), [
    ('[{"text": "a"},\n {"text": "b"}\n {"text": "c"}]', 3, "delimiter"), ('[{"text": "a"},\n {"text": }]', 2, "Expecting value"),
    ('[{"text": "a"},\n\n {"text": "b', 3, "Unterminated string"), ('[{"text": "a"}\n]\n]', 3, "Extra data"), ('[{"text": "a"},\n', 2, "value"),
    ('\n\n[{"text": "a"}', 3, "delimiter"), ("[" * 100_000, 1, "nested too deeply")])
def test_faults_are_named_by_their_line(tmp_path, monkeypatch, text, line, reason, piece):
    if len(text) > 1000 and piece < 1000:
        pytest.skip("takes long")
    monkeypatch.setattr(json_array, "CHARACTERS_AT_ONCE", piece)
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=f"a.json:{line}: not JSON .*{reason}"):
        list(file_texts(path, "text"))


@pytest.mark.parametrize(("name", "text"), [
    ("a.txt", "x" * 200), ("a.txt", "a line\n" * 30), ("a.jsonl", json.dumps({"text": "x" * 200})), ("a.csv", "text\n" + "x" * 200),
    ("a.csv", 'text\n"' + "a line\n" * 30 + '"'), ("a.json", json.dumps({"text": "x" * 200}, indent=1))])
def test_what_is_too_long_is_refused_before_it_is_read_whole(tmp_path, monkeypatch, name, text):
    monkeypatch.setattr(formats, "LONGEST", 100)
    monkeypatch.setattr(formats, "BYTES_AT_ONCE", 50)
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match="100"):
        list(file_texts(path, "text"))


def test_an_array_on_one_long_line_is_read_item_by_item(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST", 100)
    monkeypatch.setattr(formats, "BYTES_AT_ONCE", 10)
    (tmp_path / "a.jsonl").write_text(json.dumps([{"text": f"text {i}"} for i in range(100)]))
    assert list(file_texts(tmp_path / "a.jsonl", "text")) == [f"text {i}" for i in range(100)]
