"""Entropy and distinct-n against plain counting; running moments against numpy on everything at once."""

import math

import numpy as np
import pytest

from tests.inspection_data import distinct_by_counting, entropy_by_counting
from tsdfm.pipeline.metrics import Moments, distinct_n, unigram_entropy


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
