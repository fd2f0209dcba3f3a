"""Models at equal diversity: which curve each row stands against, and what is read off it."""

import math

import numpy as np
import pytest

from tests.support import present
from tsdfm.pipeline.evaluation.effects import JudgedTexts
from tsdfm.pipeline.evaluation.judge import Likelihood
from tsdfm.pipeline.evaluation.measures.compared import compared, where
from tsdfm.schemas.evaluate import Perplexity, Row

TEXTS = 20
NOISE = np.random.default_rng(3).normal(size=TEXTS)
NOISE -= NOISE.mean()


def row(model, steps, temperature, nats, entropy, distinct_2):
    """A row under two judges, the second of which sees ten times the perplexity."""
    judges = {name: Perplexity(perplexity=times * math.exp(nats), low=1, high=9999, tokens=100) for name, times in (("j", 1), ("k", 10))}
    return Row(model=model, fingerprint="f", vocabulary="v", steps=steps, temperature=temperature, samples=TEXTS, length=8, nfe=steps,
               seconds=1.0, tokens_per_second=1.0, entropy_bits=entropy, entropy_standard_error=0.1, distinct_2=distinct_2,
               distinct_4=1, self_bleu=0.1, judges=judges)


def texts(found, noise=NOISE):
    """Texts of 10 tokens each that have a row's figures, and what is common to the i-th text of all rows."""
    return {name: JudgedTexts(Likelihood(10 * (math.log(judge.perplexity) + noise), np.full(TEXTS, 10.0)), found.entropy_bits + 0 * noise)
            for name, judge in found.judges.items()}


@pytest.fixture
def rows():
    """A teacher in 8 and 64 steps, cooled, and a student between its temperatures by entropy, and elsewhere by distinct-2."""
    teacher = [row("t", steps, t, nats - shift, 4 + t, 0.4 + t / 10) for steps, shift in ((8, 0.0), (64, 1.0))
               for t, nats in ((0.8, 4.0), (1.0, 5.0))]
    return [*teacher, row("s", 8, 1.0, 4.2, 4.9, 0.485)]


def test_a_row_is_set_against_as_many_steps_and_the_most(rows):
    found = compared(rows, {where(each): texts(each) for each in rows}, "t")
    assert [(each.model, each.steps, each.temperature, each.against, each.against_steps) for each in found] == [
        ("t", 8, 0.8, "t", 64), ("t", 8, 1.0, "t", 64), ("s", 8, 1.0, "t", 8), ("s", 8, 1.0, "t", 64)]
    assert list(found[0].judges) == ["j", "k"]


def test_ratios_are_read_off_the_curve_at_the_same_entropy_and_distinct_2(rows):
    same, most = compared(rows, {where(each): texts(each) for each in rows}, "t")[2:]
    for judge in ("j", "k"):  # what a judge sees of both alike cancels
        by_entropy = present(same.judges[judge].entropy)
        assert (by_entropy.low, by_entropy.value, by_entropy.high) == pytest.approx((math.exp(4.2 - 4.5),) * 3)
        assert same.judges[judge].distinct_2 == pytest.approx(math.exp(4.2 - 4.25))
        assert present(most.judges[judge].entropy).value == pytest.approx(math.exp(4.2 - 3.5))


def test_an_interval_is_of_texts_that_do_not_share_their_noise(rows):
    judged = {where(each): texts(each, -NOISE if each.model == "s" else NOISE) for each in rows}
    found = present(compared(rows, judged, "t")[2].judges["j"].entropy)
    assert found.low < found.value < found.high


def test_where_the_curve_does_not_reach_there_is_no_ratio(rows):
    rows = [*rows, row("s", 8, 1.1, 4.2, 5.3, 0.9)]
    found = compared(rows, {where(each): texts(each) for each in rows}, "t")[-1].judges["j"]
    assert found.entropy is None
    assert found.distinct_2 is None


def test_one_curve_alone_is_set_against_nothing(rows):
    assert compared(rows[:2], {where(each): texts(each) for each in rows}, "t") == []


@pytest.mark.parametrize("other", [{"vocabulary": "w"}, {"length": 9}])
def test_models_of_other_tokens_are_not_compared(rows, other):
    rows = [*rows[:-1], rows[-1].model_copy(update=other)]
    assert {each.model for each in compared(rows, {where(each): texts(each) for each in rows}, "t")} == {"t"}
