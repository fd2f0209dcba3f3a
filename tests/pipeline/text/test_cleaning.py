"""A user's text is trained on as it was given; what goes is counted; more goes only where it is asked for."""

import hashlib
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsdfm.pipeline.text.cleaning import Seen, as_given, clean, told
from tsdfm.pipeline.text.documents import Reading, read_documents
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import CorpusConfig

LONG = [f"Line {i} says that the number {i * i} is the square of {i}, and it is long enough." for i in range(4)]
AS_GIVEN = {
    "Persian, with a non-joiner": "می\u200cخواهم",
    "a family, with joiners": "\U0001f468\u200d\U0001f469\u200d\U0001f467 and a flag \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "marks of direction": "\u202bשלום\u202c \u2066x\u2069 \u200f",
    "a soft hyphen": "Donau\u00addampf\u00adschiff",
    "private use, unassigned": "\ue000 \u0378",
    "code": "def f(x):\n    if x:\n\t\treturn 0\n\n\n    return 0\n",
    "a dialogue": "- Yes?\n- No.\n- Yes?\n- No.\n",
    "a table": "a   b\n1   2\n",
    "short": "好。",
    "blanks at both ends": "  indented, and a blank after \n",
    "a line separator": "one\u2028two\u00a0three",
}


def load(path, **more):
    reading = Reading()
    return list(read_documents(CorpusConfig(path=str(path), **more), reading)), {name: n for name, n in reading.left_out.items() if n}


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", AS_GIVEN)
def test_a_text_is_taken_as_given(tmp_path, name):
    assert load(write(tmp_path / "a.jsonl", [AS_GIVEN[name]])) == ([AS_GIVEN[name]], {})


def test_lines_that_repeat_in_other_documents_stay(tmp_path):
    dialogues = ["- Shall we go?\n- Yes.\n", "- Are you there?\n- Yes.\n", "- Yes."]
    assert load(write(tmp_path / "a.jsonl", dialogues)) == (dialogues, {})


def test_what_is_left_out_is_counted(tmp_path):
    texts = ["one", None, "", " \n ", "two\x00\x07", "one", "o\x7fne", "\x1b", "\ud800x"]
    found, left_out = load(write(tmp_path / "a.jsonl", texts))
    assert found == ["one", "two", "x"]
    assert left_out == {"null texts": 1, "empty texts": 3, "control characters": 5, "duplicate documents": 2}


def test_prose_is_asked_for(tmp_path):
    """The second of two equal lines goes, whatever its case or spacing, within a document and across documents."""
    a, b, c, d = LONG
    path = write(tmp_path / "a.jsonl", [f"{a}\n\n\n{b}", f"{b.upper()}\n{c}", f"  {c.replace(' ', '   ')}\n{d}", a, "Too short."])
    found, left_out = load(path, clean="prose")
    assert found == [f"{a}\n{b}", c, d]
    assert left_out == {"repeated lines": 3, "documents under 60 characters": 1}
    assert len(load(path)[0]) == 5


@pytest.mark.parametrize(("raw", "wanted"), [
    ("a\r\nb", "a\nb"), ("a\x00b\x07\x1bc\u200bd\ufeff", "abc\u200bd\ufeff"), ("e\u0301", "é"), ("e\x00\u0301", "é"), ("日本", "日本"),
    ("\ud800x", "x"), ("a\u00a0b", "a\u00a0b"), ("", ""), ("\x9f\x80", ""), ("a\tb", "a\tb"),
])
def test_as_given(raw, wanted):
    assert as_given(raw, Counter()) == wanted


@pytest.mark.parametrize("gap", ["\r", "\x0b", "\x0c", "\x85", "\r\n"])
def test_a_control_character_that_separates_does_not_join_words(gap):
    """A bare carriage return, a vertical tab, a form feed or NEL ends a line; the words about it stay two."""
    assert as_given(f"one{gap}two", Counter()) == "one\ntwo"


@given(text=st.text())
def test_cleaning_is_idempotent_and_encodable(text):
    for rules in ("none", "prose"):
        once = list(clean([text], rules, Counter()))
        assert list(clean(once, rules, Counter())) == once
        "".join(once).encode("utf-8")


def test_told():
    assert told(Counter()) == ""
    assert told(Counter({"null texts": 1200, "empty texts": 3, "others": 0})) == "3 empty texts, 1,200 null texts"
    assert told(Counter({"documents under 60 characters": 1, "files of other kinds (.pdf)": 1, "cards": 1})) == \
        "1 card, 1 document under 60 characters, 1 file of other kinds (.pdf)"


@pytest.mark.parametrize("text", ["", " \n\n ", "\x00"])
def test_a_corpus_without_a_document_is_refused(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match="no document"):
        load(tmp_path / "a.txt")


@given(texts=st.lists(st.text(max_size=2)), size=st.sampled_from([3, 4, 8, 16]))
def test_what_was_seen_is_told_as_by_a_set_of_digests(texts, size):
    """Digests of 3 bytes collide, and stand beside each other in every way."""
    seen, digests = Seen(size), set()
    for text in texts:
        digest = hashlib.blake2b(text.encode(), digest_size=size).digest()
        assert seen.is_new(text) == (digest not in digests)
        digests.add(digest)
