"""8-grams that are found are those that a plain search finds, wherever the text that they are looked for in is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdfm.pipeline.evaluation.memorisation import corpus as module
from tsdfm.pipeline.evaluation.memorisation.corpus import TrainingText
from tsdfm.pipeline.evaluation.memorisation.grams import GRAM, Search, gram_hashes, standing_in
from tsdfm.pipeline.evaluation.sample_cache import SampleCache, key_of
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.schemas.corpus import CorpusConfig


def grams(row):
    return [tuple(row[start : start + GRAM]) for start in range(len(row) - GRAM + 1)]


def text_of(tokens, asked=None, path="nowhere.txt"):
    def stream(progress):
        if asked is not None:
            asked.append("words")
        return tokens

    return TrainingText("words", CorpusConfig(path=str(path)), stream)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(0, 40), size=st.integers(0, 300), ids=st.integers(1, 3), cut=st.integers(1, 50))
def test_as_many_as_a_plain_search_finds(seed, length, size, ids, cut):
    random = np.random.default_rng(seed)
    texts, corpus = random.integers(ids, size=(3, length)), random.integers(ids, size=size)
    known = set(grams(corpus.tolist()))
    hashes = gram_hashes(texts)
    assert hashes.shape == (3, max(0, length - GRAM + 1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "AT_ONCE", cut)
        there = standing_in(hashes, text_of(torch.from_numpy(corpus)).hashes())
    assert np.isin(hashes, there).tolist() == [[gram in known for gram in grams(row)] for row in texts.tolist()]


def test_different_grams_have_different_hashes():
    """Of tokens that differ in few bits, in order, or by a shift."""
    rows = np.array([[i, j, 0, k, 0, 0, 1 << 16, i] for i in range(40) for j in range(40) for k in range(40)])
    assert len(np.unique(gram_hashes(rows))) == len(rows)


def test_the_share_is_over_the_texts_and_kept(tmp_path):
    tokens = np.stack([np.arange(10, 26), np.arange(200, 216), np.r_[np.arange(50, 60), np.arange(200, 206)]])
    samples, asked = Samples(tokens, ["", "", ""], None, None, "words"), list[str]()
    (tmp_path / "text.txt").write_text("A text.")
    place = text_of(torch.arange(100), asked, tmp_path / "text.txt")
    for _ in range(2):
        search = Search(SampleCache(tmp_path))
        search.add({"texts": 1}, samples, place)
        search.add({"texts": 2}, Samples(tokens[:, :7], ["", "", ""], None, None, "words"), place)  # too short to have one
        for each in search.places:
            search.look(each)
        found = search.shares()
        assert list(found) == [key_of({"texts": 1})]
        shares = np.array([1, 0, 3 / 9])
        one = found[key_of({"texts": 1})]
        assert one.mean == pytest.approx(shares.mean())
        assert one.error == pytest.approx(shares.std(ddof=1) / np.sqrt(3))
    assert asked == ["words"]
