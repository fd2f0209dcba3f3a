"""Memorised 8-grams are those that a plain search finds, wherever the corpus is cut."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsdfm.pipeline.evaluation.measures import memorisation as module
from tsdfm.pipeline.evaluation.measures.memorisation import GRAM, Memorisation, gram_hashes, standing_in
from tsdfm.pipeline.evaluation.sample_cache import SampleCache, key_of
from tsdfm.pipeline.evaluation.samples import Samples
from tsdfm.schemas.corpus import CorpusConfig


def grams(row):
    return [tuple(row[start : start + GRAM]) for start in range(len(row) - GRAM + 1)]


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
        there = standing_in(hashes, torch.from_numpy(corpus))
    assert np.isin(hashes, there).tolist() == [[gram in known for gram in grams(row)] for row in texts.tolist()]


def test_different_grams_have_different_hashes():
    """Of tokens that differ in few bits, in order, or by a shift."""
    rows = np.array([[i, j, 0, k, 0, 0, 1 << 16, i] for i in range(40) for j in range(40) for k in range(40)])
    assert len(np.unique(gram_hashes(rows))) == len(rows)


def test_the_share_is_over_the_texts_and_kept(tmp_path):
    corpus = torch.arange(100)
    tokens = np.stack([np.arange(10, 26), np.arange(200, 216), np.r_[np.arange(50, 60), np.arange(200, 206)]])
    samples = Samples(tokens, ["", "", ""], None, None, "words")
    asked = []

    def stream(vocabulary):
        asked.append(vocabulary)
        return corpus

    for _ in range(2):
        counted = Memorisation(SampleCache(tmp_path), CorpusConfig(path="nowhere.txt"))
        counted.add({"texts": 1}, samples)
        counted.add({"texts": 2}, Samples(tokens[:, :7], ["", "", ""], None, None, "words"))  # too short to have one
        found = counted.count(stream)
        assert list(found) == [key_of({"texts": 1})]
        shares = np.array([1, 0, 3 / 9])
        one = found[key_of({"texts": 1})]
        assert one.memorised == pytest.approx(shares.mean())
        assert one.memorised_standard_error == pytest.approx(shares.std(ddof=1) / np.sqrt(3))
    assert asked == ["words"]
