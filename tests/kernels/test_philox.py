"""Philox4x32-10 against its published vectors and an independent implementation in plain Python integers."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tsdfm.kernels.philox import philox4x32, uniform

pytestmark = pytest.mark.triton  # every test of this file, those marked triton_slow with the slow tests

# Random123, tests/kat_vectors, lines "philox4x32 10": counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
     (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
TRITON = os.environ.get("TSDFM_KERNELS") == "triton"  # in the interpreter: see test_interpreted.py
ONE_LAW = pytest.mark.skipif(TRITON, reason="the same words in every form: their law is looked at once")
word = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1]))


def oracle(counter, key):
    """Salmon et al. 2011, section 3.3, in Python's unbounded integers."""
    (x0, x1, x2, x3), (k0, k1) = counter, key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (p1 >> 32) ^ x1 ^ k0, p1 % 2**32, (p0 >> 32) ^ x3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


def tensors(words):
    return tuple(torch.tensor(w) for w in words)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter, key, words):
    assert oracle(counter, key) == words
    assert tuple(int(w) for w in philox4x32(tensors(key), tensors(counter))) == words


@pytest.mark.triton_slow
@given(counter=st.tuples(word, word, word, word), key=st.tuples(word, word))
def test_scalar_equals_the_independent_implementation(counter, key):
    assert tuple(int(w) for w in philox4x32(tensors(key), tensors(counter))) == oracle(counter, key)


@pytest.mark.triton_slow
@given(data=st.data())
def test_broadcast_equals_scalar(data):
    """Every word of key and counter has its own broadcastable shape; each element is the scalar function of its words."""
    sizes = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)))
    operands = []
    for _ in range(6):
        shape = [size if data.draw(st.booleans()) else 1 for size in sizes]
        count = shape[0] * shape[1] * shape[2]
        operands.append(torch.tensor(data.draw(st.lists(word, min_size=count, max_size=count))).view(shape))
    out = philox4x32(tuple(operands[:2]), tuple(operands[2:]))
    full = torch.broadcast_tensors(*operands)
    for word_of_output in out:
        assert word_of_output.shape == full[0].shape
        assert word_of_output.dtype == torch.int64
    for index in torch.cartesian_prod(*(torch.arange(n) for n in full[0].shape)).tolist():
        k0, k1, *counter = (int(operand[tuple(index)]) for operand in full)
        assert tuple(int(w[tuple(index)]) for w in out) == oracle(counter, (k0, k1))


@pytest.mark.triton_slow
@given(counter=st.tuples(word, word, word, word), key=st.tuples(word, word))
def test_uniform_is_53_bits_of_the_first_two_words(counter, key):
    w0, w1, _, _ = oracle(counter, key)
    value = float(uniform(tensors(key), tensors(counter)))
    assert value == ((w0 >> 5) * 2**26 + (w1 >> 6)) / 2**53
    assert 0 <= value < 1


@pytest.mark.triton_slow
@pytest.mark.skipif(TRITON, reason="the words are planted in the torch form")
def test_uniform_stays_below_one_for_the_largest_words(monkeypatch):
    """No counter is known that gives all ones, so the words are planted."""
    ones = torch.tensor(0xFFFFFFFF)
    monkeypatch.setattr("tsdfm.kernels.philox._words", lambda key, counter: (ones,) * 4)
    assert float(uniform(tensors((0, 0)), tensors((0, 0, 0, 0)))) == 1 - 2**-53


def test_uniform_is_float64():
    assert uniform(tensors((1, 2)), tensors((3, 4, 5, 6))).dtype == torch.float64


@ONE_LAW
@pytest.mark.parametrize("varied", range(6))
def test_uniform_is_uniform_in_every_word(varied):
    """200,000 numbers that differ in one word only: 64 equal cells, and 64 cells of the lower bits."""
    words = [torch.tensor(7 + i) for i in range(6)]
    words[varied] = torch.arange(200_000)
    u = uniform((words[0], words[1]), tuple(words[2:]))
    assert u.unique().numel() == 200_000
    for cells in ((u * 64).long(), (u * 2**26).long() % 64):
        assert chisquare(torch.bincount(cells, minlength=64).numpy()).pvalue > 1e-4


@ONE_LAW
def test_consecutive_counters_and_keys_are_independent():
    """Pairs (u_i, u_{i+1}) along ids and along positions fill an 8 x 8 grid evenly."""
    ids, positions = torch.arange(500)[:, None], torch.arange(501)
    zero = torch.tensor(0)
    u = (uniform((torch.tensor(3), ids), (positions, zero, zero, zero)) * 8).long()
    for first, second in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):
        pairs = torch.bincount((first * 8 + second).flatten(), minlength=64)
        assert chisquare(pairs.numpy()).pvalue > 1e-4
