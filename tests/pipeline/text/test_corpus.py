"""The split: a function of each text alone, whose parts are disjoint and complete; tokens and facts of a corpus."""

import hashlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support import select
from tsdfm.pipeline.text.corpus import others_of, prepare, windows_of
from tsdfm.pipeline.text.split import split_of
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.corpus import CorpusConfig

DOCUMENTS = [f"Document {i} says that the number {i * i} is the square of {i}, and it is long enough." for i in range(40)]


def test_the_split_is_a_function_of_the_text():
    """Recomputed from sha256; the same whatever surrounds the text and in whichever order it comes."""
    for text in DOCUMENTS:
        bucket = int(hashlib.sha256(text.encode()).hexdigest()[:8], 16)
        wanted = "held_out" if bucket % 100 < 2 else "first" if (bucket // 100) % 2 else "second"
        assert split_of(text) == wanted
    assert set(select(DOCUMENTS[::-1], "first")) == set(select(DOCUMENTS, "first"))
    assert list(select(DOCUMENTS[:7], "second")) == [t for t in select(DOCUMENTS, "second") if t in DOCUMENTS[:7]]


@given(texts=st.lists(st.text(), unique=True))
def test_the_parts_are_disjoint_and_complete(texts):
    first, second, test, everything = (list(select(texts, part)) for part in ("first", "second", "held_out", "all"))
    assert sorted([*first, *second, *test]) == sorted(texts)
    assert sorted([*first, *second]) == sorted(everything)
    assert everything == [t for t in texts if t in set(everything)]  # in order


def test_the_parts_have_their_sizes():
    texts = [f"text {i}" for i in range(20_000)]
    sizes = {part: sum(1 for _ in select(texts, part)) for part in ("held_out", "first", "second")}
    assert sizes["held_out"] == pytest.approx(400, abs=80)
    assert sizes["first"] == pytest.approx(9800, abs=300)
    assert sizes["second"] == pytest.approx(9800, abs=300)


def test_facts_say_what_was_left_out(tmp_path):
    """The digest is that of the documents joined by zero bytes, as it was before it was taken piece by piece."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*DOCUMENTS, DOCUMENTS[3], None, ""]))
    heard = []
    made = prepare(CorpusConfig(path=str(path)), Vocabulary.train(DOCUMENTS, 300), 300, lambda *told: heard.append(told))
    assert made.facts.sha256 == hashlib.sha256("\0".join(DOCUMENTS).encode()).hexdigest()
    assert made.facts.left_out == {"duplicate documents": 1, "null texts": 1, "empty texts": 1}
    assert made.facts.documents == len(DOCUMENTS)
    told = ("reading the corpus", 1, 1, "40 documents; left out: 1 duplicate document, 1 empty text, 1 null text")
    assert told in heard
    again = prepare(CorpusConfig(path=str(path)), made.vocabulary, 300)
    assert again.facts == made.facts
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    assert "left_out" not in prepare(CorpusConfig(path=str(path)), made.vocabulary, 300).facts.model_dump()


def test_a_kept_tokenizer_that_was_changed_is_trained_anew(tmp_path, monkeypatch):
    """With two of its merges swapped it is a tokenizer still, of other tokens."""
    monkeypatch.setenv("TSDFM_CORPORA", str(tmp_path / "corpora"))
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    config = CorpusConfig(path=str(path))
    made = prepare(config, None, 300).vocabulary.to_json()
    (file,) = (tmp_path / "corpora").glob("*/tokenizer-*")
    head, _, data = file.read_bytes().partition(b"\n")
    other = json.loads(data)
    other["model"]["merges"][:2] = other["model"]["merges"][1::-1]
    file.write_bytes(head + b"\n" + json.dumps(other).encode())
    assert prepare(config, None, 300).vocabulary.to_json() == made


def test_other_windows_are_none_of_the_first_ones():
    stream = torch.arange(1003)
    for limit, others in ((3, 3), (40, 40), (60, 40), (100, 0), (200, 0)):
        first, second = windows_of(stream, 10, limit), others_of(stream, 10, limit)
        assert second.shape == (others, 10)
        starts = [set(each[:, 0].tolist()) for each in (first, second)]
        assert not starts[0] & starts[1]
        assert len(starts[1]) == others
        assert all(start % 10 == 0 for start in starts[1])
