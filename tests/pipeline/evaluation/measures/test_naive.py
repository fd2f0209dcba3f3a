"""Naive samplers are bad in the way that they say, and in no other."""

import numpy as np
import pytest
import torch

from tsdfm.pipeline.evaluation.measures.corpus_texts import NAIVE
from tsdfm.pipeline.evaluation.measures.naive import copied, naive_samplers, repeated, shuffled, unigram
from tsdfm.pipeline.text.metrics import distinct_n, unigram_entropy
from tsdfm.schemas.base import InputError

TEXTS, LENGTH, IDS = 200, 32, 50


@pytest.fixture(scope="module")
def stream():
    """Tokens that are mostly the one after the last, the small ids more often than the others."""
    random = np.random.default_rng(0)
    starts = (50 * random.random(2000) ** 2).astype(int)
    return torch.from_numpy(np.concatenate([np.arange(start, min(start + 12, 50)) for start in starts]))


def random():
    return np.random.default_rng(3)


def test_unigram_has_the_frequencies_of_the_corpus_and_no_order(stream):
    tokens = unigram(stream, IDS, 4000, LENGTH, random())
    wanted = np.bincount(stream.numpy(), minlength=IDS) / len(stream)
    found = np.bincount(tokens.ravel(), minlength=IDS) / tokens.size
    assert np.abs(found - wanted).max() < 5 * np.sqrt(0.25 / tokens.size)
    assert np.mean(tokens[:, 1:] == tokens[:, :-1] + 1) < 0.1  # in the corpus: nine of ten


def test_copied_stands_in_the_corpus_and_shuffled_has_its_tokens(stream):
    text = " ".join(map(str, stream.tolist()))
    assert all(" ".join(map(str, row)) in text for row in copied(stream, TEXTS, LENGTH, random()).tolist())
    mixed = shuffled(stream, TEXTS, LENGTH, random())
    np.testing.assert_array_equal(np.sort(mixed), np.sort(copied(stream, TEXTS, LENGTH, random())))
    assert np.mean(mixed[:, 1:] == mixed[:, :-1] + 1) < 0.2


def test_a_repeated_phrase_passes_a_check_of_entropy_and_is_no_longer_than_it_must_be(stream):
    real, tokens = copied(stream, TEXTS, LENGTH, random()), repeated(stream, TEXTS, LENGTH, random())
    floor = np.quantile(unigram_entropy(real), 0.05)
    assert np.mean(unigram_entropy(tokens) >= floor) >= 0.95
    assert np.mean([distinct_n([row], 4) for row in tokens]) < np.mean([distinct_n([row], 4) for row in real]) - 0.1
    for row in tokens[:20]:
        period = next(size for size in range(1, LENGTH + 1) if (row[size:] == row[:-size]).all())
        if period < LENGTH:
            assert unigram_entropy(row[np.arange(LENGTH) % (period - 1)]) < floor


def test_the_seed_alone_decides_and_short_text_is_refused(stream):
    assert tuple(naive_samplers(stream, IDS)) == NAIVE
    for sampler in naive_samplers(stream, IDS).values():
        np.testing.assert_array_equal(sampler(5, LENGTH, random()), sampler(5, LENGTH, random()))
        assert (sampler(5, LENGTH, random()) != sampler(5, LENGTH, np.random.default_rng(4))).any()
    for sampler in naive_samplers(stream[:31], IDS).values():
        with pytest.raises(InputError, match="fewer than one text of 32"):
            sampler(5, LENGTH, random())
