"""Perplexity under a judge against full logits; intervals that cover; texts that can't be scored."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import LENGTH, at_once, vocabulary
from tsdfm.kernels.linear import linear
from tsdfm.pipeline.evaluation.judge import Likelihood, Prefixes
from tsdfm.pipeline.evaluation.open_judge import open_judge
from tsdfm.pipeline.models.folder import load
from tsdfm.schemas.base import InputError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def judge(tiny_models):
    return open_judge(str(tiny_models.ar), CPU)


@pytest.fixture(scope="module")
def direct(tiny_models):
    """Nats of one sequence from all its logits."""
    network = load(tiny_models.ar).network

    def nats(tokens):
        ids = torch.tensor([list(tokens)])
        return -float(network(ids).double().log_softmax(-1).gather(-1, ids[..., None]).sum())
    return nats


def random_tokens(rows, length, vocab=299, seed=0):
    return np.random.default_rng(seed).integers(vocab, size=(rows, length))


def test_scores_are_those_of_full_logits(judge, direct):
    tokens = random_tokens(9, 16)
    found = judge.score_tokens(tokens)
    np.testing.assert_allclose(found.nats, [direct(row) for row in tokens], rtol=1e-5)
    assert found.tokens.tolist() == [16] * 9
    assert found.perplexity == pytest.approx(np.exp(sum(direct(row) for row in tokens) / (9 * 16)), rel=1e-5)


def test_ragged_texts_come_back_in_order_whatever_the_batches(judge, direct, monkeypatch):
    rng = np.random.default_rng(1)
    sequences = [rng.integers(299, size=length).tolist() for length in (3, 16, 0, 1, 7, 16, 2, 30)]
    expected = [direct(row) if row else 0.0 for row in sequences]
    for batch_tokens in (1, 20, 4096):
        at_once(monkeypatch, judge_tokens=batch_tokens)
        found = replace(judge, longest=None).score_tokens(sequences)
        np.testing.assert_allclose(found.nats, expected, rtol=1e-5)
        assert found.tokens.tolist() == [len(row) for row in sequences]


def test_tokens_of_the_judges_vocabulary_are_not_read_as_text(judge):
    tokens = random_tokens(4, 16)
    by_tokens = judge.score(tokens, ["never read"] * 4, vocabulary().fingerprint)
    np.testing.assert_array_equal(by_tokens.nats, judge.score_tokens(tokens).nats)


def test_texts_of_another_vocabulary_are_read(judge, direct):
    texts = ["the quick brown fox 7", "masks fall in turn 12 [MASK]"]
    found = replace(judge, longest=None).score(random_tokens(2, 16), texts, "another fingerprint")
    words = vocabulary()
    encoded = [words.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert words.mask_id not in encoded[1]  # a literal [MASK] is plain text
    np.testing.assert_allclose(found.nats, [direct(ids) for ids in encoded], rtol=1e-5)
    assert found.tokens.tolist() == [len(ids) for ids in encoded]


def test_texts_without_a_token_are_refused(judge):
    with pytest.raises(InputError, match="none of the 2 texts has a token"):
        judge.score_tokens([[], []])


def strided(network, tokens, width, first=0):
    """Nats of one text by the definition of strided perplexity: windows of all logits, each token counted once."""
    inputs, stride, total, scored = [network.config.bos_id, *tokens[:-1]], max(1, width // 2), 0.0, 0
    for begin in range(0, len(tokens), stride):
        part = torch.tensor([inputs[begin : begin + width]])
        logprob = linear(network.hidden(part)[0], network.head_weight)[0].double().log_softmax(-1)
        for place in range(scored - begin, part.shape[1]):
            total -= float(logprob[place, tokens[begin + place]]) * (begin + place >= first)
        scored = begin + part.shape[1]
        if scored == len(tokens):
            return total
    raise AssertionError("every text ends")


@pytest.mark.parametrize("batch_tokens", [1, 20, 4096])
@pytest.mark.parametrize("width", [1, 2, 3, 7, 16])
def test_texts_beyond_the_judges_positions_are_scored_in_strided_windows(tiny_models, judge, width, batch_tokens, monkeypatch):
    at_once(monkeypatch, judge_tokens=batch_tokens)
    network = load(tiny_models.ar).network
    rng = np.random.default_rng(1)
    sequences = [rng.integers(299, size=length).tolist() for length in (3, 0, 16, 17, 1, 24, 40, 33)]
    found = replace(judge, longest=width).score_tokens(sequences)
    np.testing.assert_allclose(found.nats, [strided(network, row, width) if row else 0.0 for row in sequences], rtol=1e-5)
    assert found.tokens.tolist() == [len(row) for row in sequences]  # each once
    assert found.in_windows == sum(len(row) > width for row in sequences)


@pytest.mark.parametrize("width", [3, 16, 64])
def test_what_is_given_is_read_and_not_scored(tiny_models, judge, width):
    """Every later token has the likelihood that it has in the whole text; the features are of those tokens, too."""
    network = load(tiny_models.ar).network
    rng = np.random.default_rng(1)
    sequences, first = [rng.integers(299, size=length).tolist() for length in (3, 16, 17, 24, 40, 5, 0)], [1, 0, 9, 23, 17, 5, 0]
    found = replace(judge, longest=width).score_tokens(sequences, first)
    expected = [strided(network, row, width, begin) if row else 0.0 for row, begin in zip(sequences, first, strict=True)]
    np.testing.assert_allclose(found.nats, expected, rtol=1e-5, atol=1e-12)
    assert found.tokens.tolist() == [len(row) - begin for row, begin in zip(sequences, first, strict=True)]
    assert found.in_windows == sum(len(row) > max(width, begin) for row, begin in zip(sequences, first, strict=True))
    whole = replace(judge, longest=width).score_tokens(sequences)
    assert (found.nats[[1]] == whole.nats[[1]]).all()
    with pytest.raises(InputError, match="none of the 2 texts has a token"):
        judge.score_tokens([[1, 2], [3]], [2, 1])


def test_a_judge_that_reads_text_scores_what_stands_after_the_given_text(judge, direct):
    """From the first token that the beginning alone does not have: where a token would span the border, it counts."""
    words = vocabulary()
    texts, begun = ["the quick brown fox 7", "masks fall in turn"], ["the quick", "masks fa"]
    found = replace(judge, longest=None).score(random_tokens(2, 16), texts, "another fingerprint", Prefixes(np.array([1, 2]), begun))
    for row, (text, start) in enumerate(zip(texts, begun, strict=True)):
        whole, alone = words.encode([text])[0], words.encode([start])[0]
        alike = next(place for place in range(len(whole)) if alone[place : place + 1] != whole[place : place + 1])
        assert found.nats[row] == pytest.approx(direct(whole) - (direct(whole[:alike]) if alike else 0.0), rel=1e-5)
        assert found.tokens[row] == len(whole) - alike


def test_a_text_that_fits_is_scored_as_before_whatever_stands_beside_it(judge):
    fitting = random_tokens(9, 16).tolist()
    alone = judge.score_tokens(fitting)
    beside = judge.score_tokens([random_tokens(1, 50)[0].tolist(), *fitting, random_tokens(1, 17)[0].tolist()])
    np.testing.assert_array_equal(beside.nats[1:-1], alone.nats)
    np.testing.assert_array_equal(replace(judge, longest=None).score_tokens(fitting).nats, alone.nats)
    assert (alone.in_windows, beside.in_windows) == (0, 2)


def test_a_judge_of_this_project_has_the_positions_it_was_fitted_to(judge):
    assert judge.longest == LENGTH


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(3)
    inside = 0
    for trial in range(200):
        nats = rng.gamma(4.0, 0.5, size=(60, 20)).sum(1)  # mean 2 nats a token
        low, high = Likelihood(nats, np.full(60, 20.0)).interval(seed=trial)
        inside += low <= np.exp(2.0) <= high
    assert 0.88 <= inside / 200 <= 0.99


def test_the_interval_holds_the_perplexity_and_narrows_with_texts():
    nats = np.random.default_rng(4).gamma(4.0, 0.5, size=(400, 20)).sum(1)
    widths = []
    for rows in (25, 400):
        found = Likelihood(nats[:rows], np.full(rows, 20.0))
        low, high = found.interval()
        assert low < found.perplexity < high
        widths.append(np.log(high / low))
    assert widths[1] < widths[0] / 2.5
    assert Likelihood(nats, np.full(400, 20.0)).interval() == Likelihood(nats, np.full(400, 20.0)).interval()


def test_empty_texts_do_not_move_the_interval():
    nats = np.random.default_rng(5).gamma(4.0, 0.5, size=50)
    found = Likelihood(nats, np.ones(50))
    padded = Likelihood(np.append(nats, 0.0), np.append(np.ones(50), 0.0))
    assert padded.interval() == found.interval()
    assert padded.perplexity == found.perplexity
