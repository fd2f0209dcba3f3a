"""Likelihoods of continuations: of a known law they are the law's own; of any model, the mean over orders that enumeration gives."""

from itertools import permutations, product
from typing import Any

import pytest
import torch

from tsdfm.pipeline.evaluation.harness.conditional import Conditional, pieces

V, L, MASK = 3, 3, 3


def joint(seed):
    """A law of texts, [V, V, V] float64."""
    weights = torch.rand(V, V, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    return weights / weights.sum()


def posterior(law, state):
    """p(x_i | what is not masked), [L, V]: by summing the law."""
    agreeing = law.clone()
    for place, token in enumerate(state):
        if token != MASK:
            keep = torch.zeros(V, dtype=law.dtype)
            keep[token] = 1
            agreeing = agreeing * keep.view([-1 if axis == place else 1 for axis in range(L)])
    agreeing = agreeing / agreeing.sum()
    return torch.stack([agreeing.sum([axis for axis in range(L) if axis != place]) for place in range(L)])


def with_hidden_where(toy: Any) -> Any:
    class Shorter(toy):  # type: ignore[misc]
        """A table of texts of L tokens that is also asked of shorter ones, whose end is masked, at the places that are wanted."""

        def hidden_where(self, wanted, x, t, dt=None):
            self.asked = (t, dt)
            longer = torch.nn.functional.pad(x, (0, L - x.shape[1]), value=MASK)
            return self.hidden(longer, t, dt)[:, : x.shape[1]][wanted]

    return Shorter


def perfect(toys, law):
    table = torch.zeros(1, (V + 1) ** L, L, V + 1)
    for number, state in enumerate(product(range(V + 1), repeat=L)):
        table[0, number, :, :V] = posterior(law, state).log().clamp_min(-60).float()
        table[0, number, :, V] = 5.0  # [MASK] itself, which is never written, whatever the network says
    return with_hidden_where(toys[0])(table, mask_id=MASK)


def arbitrary(toys, times=7):
    table = torch.randn(times, (V + 1) ** L, L, V + 1, generator=torch.Generator().manual_seed(3))
    return with_hidden_where(toys[0])(table, mask_id=MASK)


CASES = [((), (0, 2, 1)), ((1,), (0, 2)), ((2, 0), (1,)), ((), (1, 1)), ((0,), (2,))]


@pytest.mark.parametrize(("given", "continuation"), CASES)
def test_of_a_perfect_model_it_is_the_law_s_own(toys, given, continuation):
    law = joint(1)
    whole = law[(*given, *continuation)].sum() / law[tuple(given)].sum() if given else law[tuple(continuation)].sum()
    found = Conditional(perfect(toys, law), 7, 4, 0).log_likelihood(given, continuation)
    assert found == pytest.approx(float(whole.log()), abs=1e-4)


def over_orders(model, given, continuation):
    """The mean over all orders of writing of the log-probability of writing just this, one token a step."""
    m, total = len(continuation), 0.0
    orders = list(permutations(range(m)))
    for order in orders:
        state = [*given, *[MASK] * m]
        for done, place in enumerate(order):
            x = torch.tensor([state + [MASK] * (L - len(state))])
            logits = model.head(model.hidden(x, torch.tensor([done / m]))[0, len(given) + place])
            logits[MASK] = -torch.inf
            total += float(logits.log_softmax(-1)[continuation[place]]) / len(orders)
            state[len(given) + place] = continuation[place]
    return total


@pytest.mark.parametrize(("given", "continuation"), CASES)
@torch.no_grad()
def test_of_any_model_it_is_the_mean_over_all_orders(toys, given, continuation):
    model = arbitrary(toys)
    exact = over_orders(model, given, continuation)
    assert Conditional(model, 7, 3, 0).log_likelihood(given, continuation) == pytest.approx(exact, abs=1e-4)
    drawn = [Conditional(model, 6, 64, seed).log_likelihood(given, continuation) for seed in range(400)]
    if 2 ** len(continuation) - 1 > 6:  # not all sets may be asked, so they are drawn
        spread = torch.tensor(drawn).std() / len(drawn) ** 0.5
        assert spread > 0
        assert abs(sum(drawn) / len(drawn) - exact) < 4 * spread
    else:
        assert drawn == pytest.approx([exact] * len(drawn), abs=1e-4)


def test_it_is_a_function_of_seed_and_tokens(toys):
    model = arbitrary(toys)
    first = Conditional(model, 5, 2, 0)
    once = first.log_likelihood((), (0, 1, 2))
    first.log_likelihood((1,), (0, 1))
    assert first.log_likelihood((), (0, 1, 2)) == once
    assert Conditional(model, 5, 2, 1).log_likelihood((), (0, 1, 2)) != once


def test_the_step_is_the_time_until_one_more_token_stands(toys):
    model = arbitrary(toys)
    Conditional(model, 7, 7, 0).log_likelihood((), (0, 1, 2))
    t, dt = model.asked
    assert t.tolist() == pytest.approx([2 / 3] * 3 + [1 / 3] * 3 + [0])
    assert dt.tolist() == pytest.approx([1 / 3] * 7)


def test_greedy_is_the_surest_token_first(toys):
    law = joint(1)
    model = perfect(toys, law)
    for given in [(0,), (1,), (2,)]:
        state, m = [*given, MASK, MASK], 2
        for _ in range(m):
            sure, tokens = posterior(law, state).max(-1)
            place = max((place for place in range(L) if state[place] == MASK), key=lambda place: sure[place])
            state[place] = int(tokens[place])
        for continuation in product(range(V), repeat=m):
            assert Conditional(model, 7, 8, 0).is_greedy(given, continuation) == ([*given, *continuation] == state)


@pytest.mark.parametrize("length", [1, 2, 3, 8, 40])
def test_pieces_fit_and_are_the_whole(length):
    given, continuation = list(range(5)), list(range(100, 123))
    found = list(pieces(given, continuation, length))
    assert [token for _, part in found for token in part] == continuation
    for before, part in found:
        assert len(before) + len(part) <= length
        assert before == (given + continuation)[: len(given) + part[0] - 100][-len(before):] or not before
    assert len(found) == 1 or all(len(part) >= max(1, length // 2) for _, part in found[:-1])
