"""Entropy, distinct-n and self-BLEU against plain counting; running moments against numpy on everything at once."""

import math
from collections import Counter

import numpy as np
import pytest

from tests.inspection_data import distinct_by_counting, entropy_by_counting
from tsdfm.pipeline.dataset.files.tally import Moments
from tsdfm.pipeline.text.metrics import distinct_n, self_bleu, unigram_entropy


@pytest.mark.parametrize(("rows", "length", "vocab"), [(1, 1, 1), (5, 16, 3), (9, 33, 1000), (3, 64, 2)])
def test_entropy_of_rows_is_that_of_counting(rows, length, vocab):
    tokens = np.random.default_rng(length).integers(vocab, size=(rows, length))
    expected = [entropy_by_counting(row) for row in tokens.tolist()]
    np.testing.assert_allclose(unigram_entropy(tokens), expected, atol=1e-12)


def test_entropy_keeps_leading_axes():
    tokens = np.random.default_rng(0).integers(4, size=(2, 3, 10))
    bits = unigram_entropy(tokens)
    assert bits.shape == (2, 3)
    assert float(unigram_entropy(tokens[1, 2])) == bits[1, 2]


def test_entropy_spans_zero_to_log2_of_the_length():
    assert float(unigram_entropy([7] * 11)) == 0
    assert float(unigram_entropy(range(32))) == pytest.approx(5)


def test_entropy_ignores_order_and_names():
    rng = np.random.default_rng(1)
    tokens = rng.integers(6, size=40)
    renamed = rng.permutation(6)[tokens][rng.permutation(40)]
    assert float(unigram_entropy(renamed)) == pytest.approx(float(unigram_entropy(tokens)), abs=1e-12)


def test_entropy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no tokens"):
        unigram_entropy([])


@pytest.mark.parametrize("n", [1, 2, 4])
def test_distinct_n_is_that_of_counting(n):
    rng = np.random.default_rng(n)
    sequences = [rng.integers(5, size=length).tolist() for length in (20, 3, 0, 11, 4)]
    assert distinct_n(sequences, n) == distinct_by_counting(sequences, n)


def test_ngrams_do_not_cross_sequences():
    assert distinct_n([[1, 2], [1, 2]], 2) == 0.5  # across, (2, 1) would be a third
    assert distinct_n([[1, 2, 1, 2]], 2) == pytest.approx(2 / 3)


def test_distinct_n_refuses_what_has_no_ngrams():
    with pytest.raises(ValueError, match="no sequence has 3 tokens"):
        distinct_n([[1, 2], []], 3)
    with pytest.raises(ValueError, match="at least 1"):
        distinct_n([[1, 2]], 0)


def test_moments_of_batches_are_those_of_all_values():
    # far from zero, where a naive sum of squares would cancel
    values = np.random.default_rng(2).normal(1e6, 0.1, size=1000)
    moments = Moments()
    for batch in np.split(values, [1, 1, 400, 990]):
        moments.add(batch)
    assert moments.count == 1000
    assert moments.mean == pytest.approx(values.mean(), rel=1e-14)
    assert moments.deviation == pytest.approx(values.std(ddof=1), rel=1e-6)
    assert moments.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(1000), rel=1e-6)


def test_one_value_has_no_deviation():
    moments = Moments()
    assert moments.deviation is None
    moments.add([3.0])
    assert (moments.mean, moments.deviation, moments.standard_error) == (3.0, None, None)


def bleu_by_counting(text, references):
    """BLEU-4 as its papers write it: clipped counts, brevity penalty, 0.1 for a sum of 0."""
    logs = []
    for n in range(1, 5):
        def grams(tokens, n=n):
            return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        counts, others = grams(text), [grams(reference) for reference in references]
        matches = sum(min(count, max(other[gram] for other in others)) for gram, count in counts.items())
        logs.append(math.log((matches or 0.1) / sum(counts.values())))
    closest = min((abs(len(reference) - len(text)), len(reference)) for reference in references)[1]
    return min(1.0, math.exp(1 - closest / len(text))) * math.exp(sum(logs) / 4)


@pytest.mark.parametrize(("rows", "length", "vocab", "references"), [
    (2, 4, 2, 9), (12, 20, 3, 128), (12, 20, 3, 5), (30, 33, 50, 1), (25, 16, 6, 24), (9, 40, 2, 3)])
def test_self_bleu_is_that_of_counting(rows, length, vocab, references):
    rng = np.random.default_rng(rows)
    tokens = rng.integers(vocab, size=(rows, length))
    tokens[-1] = tokens[0]  # and two texts that are equal
    order = np.random.default_rng(7).permutation(rows)
    expected = []
    for i in range(rows):
        chosen = [j for j in order[: references + 1] if j != i][: references]
        expected.append(bleu_by_counting(tokens[i].tolist(), [tokens[j].tolist() for j in chosen]))
    assert self_bleu(tokens, references, seed=7) == pytest.approx(np.mean(expected), rel=1e-12)


def test_self_bleu_spans_disjoint_to_identical():
    assert self_bleu(np.tile(np.arange(20), (6, 1))) == pytest.approx(1.0)
    assert self_bleu(np.arange(6 * 64).reshape(6, 64)) < 0.002


def test_self_bleu_does_not_grow_with_the_number_of_texts():
    tokens = np.random.default_rng(3).integers(20, size=(800, 32))
    assert self_bleu(tokens[:400], 64) == pytest.approx(self_bleu(tokens, 64), rel=0.06)
    assert self_bleu(tokens, 256) > 1.1 * self_bleu(tokens, 64)


def test_self_bleu_refuses_what_has_no_references_or_4_grams():
    for tokens, references in ((np.zeros((1, 9), int), 5), (np.zeros((5, 3), int), 5), (np.zeros((5, 9), int), 0)):
        with pytest.raises(ValueError, match="self-BLEU needs"):
            self_bleu(tokens, references)


def bleu_by_hand(texts, pool, own):
    """BLEU-4 of one text against the others of a pool, from the definition."""
    references = [each for i, each in enumerate(pool) if i != own] if own is not None else pool[:-1]
    text, total = texts, 0.0
    for n in range(1, 5):
        grams = [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]
        matched = sum(min(grams.count(gram), max(sum(tuple(r[i : i + n]) == gram for i in range(len(r) - n + 1)) for r in references))
                      for gram in set(grams))
        total += math.log(max(matched, 0.1) / max(1, len(grams))) / 4
    nearest = min((abs(len(r) - len(text)), len(r)) for r in references)[1]
    return math.exp(total) * min(1.0, math.exp(1 - nearest / len(text)))


def test_self_bleu_of_texts_of_several_lengths():
    """By the definition, with its brevity penalty; texts of one length are scored as ever."""
    random = np.random.default_rng(0)
    texts = [random.integers(4, size=n) for n in (9, 2, 7, 12, 1, 4, 7)]
    wanted = np.mean([bleu_by_hand(text.tolist(), [each.tolist() for each in texts], row) for row, text in enumerate(texts)])
    assert self_bleu(texts) == pytest.approx(wanted)
    equal = random.integers(4, size=(6, 9))
    assert self_bleu(list(equal)) == self_bleu(equal)
    with pytest.raises(ValueError, match="3"):
        self_bleu([[1, 2, 3], [4]])
