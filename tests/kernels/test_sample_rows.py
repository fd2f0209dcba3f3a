"""`sample_rows` and `argmax_rows` against the float64 definition: draws by inversion, log-probabilities, top-k."""

import math
import os
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils._python_dispatch import TorchDispatchMode

from tsdfm.kernels import sample_rows as blocks
from tsdfm.kernels.row_blocks import CDF_BLOCK
from tsdfm.kernels.sample_rows import argmax_rows, sample_rows, sample_rows_reference

BELOW_ONE = 1 - 2**-53
pytestmark = pytest.mark.triton  # every test of this file, those marked triton_slow with the slow tests
TRITON = os.environ.get("TSDFM_KERNELS") == "triton"  # in the interpreter: see test_interpreted.py
# (R, V, D): V across the borders of the CDF's blocks, primes, two tokens.
SHAPES = [(1, 2, 1), (3, 3, 5), (5, CDF_BLOCK - 1, 7), (5, CDF_BLOCK, 7), (5, CDF_BLOCK + 1, 7), (17, 509, 33), (4, 2053, 11)]
DAILY_SHAPES = [(1, 2, 1), (5, CDF_BLOCK + 1, 7)]


def make(r, v, d, k=4, *, scale=1.0, bias=True):
    g = torch.Generator().manual_seed(r * 7919 + v * 31 + d)
    hidden, weight = torch.randn(r, d, generator=g) * scale, torch.randn(v, d, generator=g)
    uniforms = torch.rand(r, k, generator=g, dtype=torch.float64)
    uniforms[:, 0], uniforms[:, -1] = 0.0, BELOW_ONE
    return hidden, weight, torch.randn(v, generator=g) if bias else None, uniforms


def oracle_logprob(hidden, weight, bias, temperature=1.0, excluded=None):
    """The tempered log-distribution in float64, written without the module under test."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    if excluded is not None:
        logits[:, excluded] = -math.inf
    return (logits / temperature).log_softmax(-1)


def assert_inverts(tokens, uniforms, logprob, slack):
    """F(v - 1) <= u < F(v) up to `slack`, and p(v) > 0, for every draw."""
    cdf = logprob.exp().cumsum(-1)
    upper = cdf.gather(-1, tokens)
    lower = upper - logprob.exp().gather(-1, tokens)
    assert (uniforms >= lower - slack).all()
    assert (uniforms <= upper + slack).all()
    assert (logprob.gather(-1, tokens) > -math.inf).all()


class LargestTensor(TorchDispatchMode):
    """The most elements of any tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def oracle_cases():
    """Every shape with every excluded id and temperature; two shapes at two settings are daily work for the interpreter."""
    for shape, excluded, temperature in product(SHAPES, [None, 0, -1], [1.0, 0.3, 5.0]):
        daily = shape in DAILY_SHAPES and (excluded, temperature) in [(None, 1.0), (0, 0.3)]
        yield pytest.param(*shape, excluded, temperature, marks=() if daily else pytest.mark.triton_slow)


@pytest.mark.parametrize(("r", "v", "d", "excluded", "temperature"), oracle_cases())
def test_against_the_oracle(r, v, d, excluded, temperature):
    hidden, weight, bias, uniforms = make(r, v, d)
    excluded = v - 1 if excluded == -1 else excluded
    truth = oracle_logprob(hidden, weight, bias, temperature, excluded)
    k = min(3, v - 1)
    for function in (sample_rows, sample_rows_reference):
        out = function(hidden, weight, bias, uniforms, temperature=temperature, excluded=excluded, top_k=k)
        assert_inverts(out.tokens, uniforms, truth, 1e-5 if function is sample_rows else 1e-12)
        torch.testing.assert_close(out.logprobs.double(), truth.gather(-1, out.tokens), rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(out.topk_logprobs.double(), truth.topk(k, -1).values, rtol=1e-5, atol=2e-5)
        torch.testing.assert_close(truth.gather(-1, out.topk_ids), truth.topk(k, -1).values, rtol=1e-5, atol=2e-5)
        if excluded is not None:
            assert (out.tokens != excluded).all()
            assert (out.topk_ids != excluded).all()


@pytest.mark.triton_slow
def test_agrees_with_the_definition_token_for_token():
    """Away from the borders of the distribution function, where float32 decides, all 8,000 draws are the same."""
    hidden, weight, bias, _ = make(1000, 509, 33)
    uniforms = torch.rand(1000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    out, definition = (f(hidden, weight, bias, uniforms) for f in (sample_rows, sample_rows_reference))
    cdf = oracle_logprob(hidden, weight, bias).exp().cumsum(-1)
    margin = (cdf[:, None] - uniforms[..., None]).abs().amin(-1)
    clear = margin > 1e-6
    assert clear.float().mean() > 0.98
    assert torch.equal(out.tokens[clear], definition.tokens[clear])


@pytest.mark.parametrize("v", [2, 4, 128, 256, pytest.param(1024, marks=pytest.mark.triton_slow)])
def test_borders_are_exact(v):
    """Equal logits and V a power of two: F is exact, and u = j/V is the first number that gives token j."""
    j = torch.arange(v, dtype=torch.float64)
    uniforms = torch.cat([j / v, (j + 1) / v - 2**-53]).clamp_max(BELOW_ONE)[None]
    tokens = sample_rows(torch.zeros(1, 3), torch.zeros(v, 3), None, uniforms).tokens[0]
    assert tokens.tolist() == [*range(v), *range(v)]


@pytest.mark.triton_slow
@pytest.mark.parametrize("excluded", [0, 3, 127, 128, 255, 256])
def test_an_excluded_id_is_never_drawn(excluded):
    """257 equal tokens, one excluded: 256 cells, over every border of them, and both ends."""
    j = torch.arange(256, dtype=torch.float64)
    uniforms = torch.cat([j / 256, (j + 0.5) / 256, torch.tensor([0.0, BELOW_ONE]).double()])[None]
    tokens = sample_rows(torch.zeros(1, 1), torch.zeros(257, 1), None, uniforms, excluded=excluded).tokens[0]
    rest = [v for v in range(257) if v != excluded]
    assert tokens.tolist() == [*rest, *rest, rest[0], rest[-1]]


@pytest.mark.parametrize("closed", [
    lambda v: (v >= 100) & (v < 300), lambda v: v != 255,
    *(pytest.param(each, marks=pytest.mark.triton_slow) for each in (
        lambda v: v % 2 == 0, lambda v: v < 200, lambda v: v >= 100, lambda v: v != 299, lambda v: v != 0)),
], ids=["a whole block", "all but 255", "even", "head", "tail", "all but the last", "all but the first"])
def test_minus_infinity_columns(closed):
    """Tokens of bias -inf are not drawn, whatever block they fill; 0 gives the first of the rest and just below 1 the last."""
    shut = closed(torch.arange(300))
    bias = torch.where(shut, -torch.inf, 0.0)
    uniforms = torch.cat([torch.tensor([0.0, BELOW_ONE]).double(), torch.linspace(0.001, 0.999, 500).double()]).expand(2, -1)
    out = sample_rows(torch.zeros(2, 1), torch.zeros(300, 1), bias, uniforms)
    open_ids = (~shut).nonzero()[:, 0]
    assert not shut[out.tokens].any()
    assert out.tokens[0, 0] == open_ids[0]
    assert out.tokens[0, 1] == open_ids[-1]
    assert torch.equal(out.tokens[0, 2:].unique(), open_ids)
    torch.testing.assert_close(out.logprobs, torch.full_like(out.logprobs, -math.log(len(open_ids))), rtol=1e-5, atol=1e-5)


def test_exclusion_beside_minus_infinity_columns():
    bias = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf, 0.0])
    uniforms = torch.tensor([[0.0, 0.49, 0.5, BELOW_ONE]]).double()
    out = sample_rows(torch.zeros(1, 2), torch.zeros(5, 2), bias, uniforms, excluded=4)
    assert out.tokens.tolist() == [[1, 1, 2, 2]]


@pytest.mark.parametrize("size", [pytest.param(1e2, marks=pytest.mark.triton_slow), 1e4])
def test_extreme_logits(size):
    """Exact logits (D = 1). Tokens far below the peak have no mass in float32 and are not drawn; log-probabilities hold."""
    weight = torch.tensor([[-size], [size - 1], [size], [size - 2], [0.0]])
    uniforms = torch.linspace(0, BELOW_ONE, 1001, dtype=torch.float64)[None]
    out = sample_rows(torch.ones(1, 1), weight, None, uniforms, top_k=5)
    truth = oracle_logprob(torch.ones(1, 1), weight, None)
    assert out.tokens.unique().tolist() == [1, 2, 3]
    assert_inverts(out.tokens, uniforms, truth, 1e-6)
    # PyTorch's float32 log_softmax is exact to 1e-6 here
    torch.testing.assert_close(out.logprobs.double(), truth.gather(-1, out.tokens), rtol=0, atol=2e-5)
    assert out.topk_ids.tolist() == [[2, 1, 3, 4, 0]]
    torch.testing.assert_close(out.topk_logprobs.double(), truth.topk(5, -1).values, rtol=1e-6, atol=2e-5)
    assert float(out.topk_logprobs.double().exp().sum()) <= 1 + 1e-5


@pytest.mark.triton_slow
@pytest.mark.parametrize("temperature", [1e-6, 1e-3])
def test_a_cold_temperature_is_the_argmax(temperature):
    """Exact logits an eighth apart: at these temperatures the likeliest token is certain."""
    order = torch.randperm(509, generator=torch.Generator().manual_seed(1))
    weight = torch.empty(509, 1)
    weight[order, 0] = -torch.arange(509).float() / 8
    uniforms = torch.tensor([[0.0, 0.3, BELOW_ONE]]).double()
    out = sample_rows(torch.ones(1, 1), weight, None, uniforms, temperature=temperature, top_k=2)
    assert (out.tokens == order[0]).all()
    assert (out.logprobs == 0).all()
    assert out.topk_ids.tolist() == [order[:2].tolist()]
    torch.testing.assert_close(out.topk_logprobs, torch.tensor([[0.0, -0.125 / temperature]]), rtol=1e-5, atol=0)


@pytest.mark.triton_slow
def test_a_hot_temperature_is_flat():
    hidden, weight, bias, uniforms = make(4, 37, 5)
    out = sample_rows(hidden, weight, bias, uniforms, temperature=1e4, top_k=37)
    torch.testing.assert_close(out.topk_logprobs, torch.full((4, 37), -math.log(37)), rtol=0, atol=5e-3)


@pytest.mark.triton_slow
def test_temperature_does_not_touch_the_inputs():
    tensors = make(4, 37, 5)
    before = [t.clone() for t in tensors]
    sample_rows(*tensors, temperature=0.5, excluded=3, top_k=2)
    argmax_rows(*tensors[:3], excluded=3)
    assert all(map(torch.equal, tensors, before))


@pytest.mark.triton_slow
def test_draws_follow_the_softmax():
    """100,000 draws of each of three rows (in the interpreter 2,000), over a V that crosses two blocks: chi-square."""
    hidden, weight, bias, _ = make(3, 131, 6)
    uniforms = torch.rand(3, 2_000 if TRITON else 100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    out = sample_rows(hidden, weight, bias, uniforms, temperature=2.5, excluded=130)
    for row in range(3):
        expected = oracle_logprob(hidden, weight, bias, 2.5, 130)[row].exp() * uniforms.shape[1]
        counts = torch.bincount(out.tokens[row], minlength=131).double()
        assert counts[130] == 0
        big = expected >= 5
        observed = torch.cat([counts[big], counts[~big].sum()[None]])
        wanted = torch.cat([expected[big], expected[~big].sum()[None]])
        keep = wanted > 0
        assert chisquare(observed[keep].numpy(), (wanted[keep] * observed.sum() / wanted.sum()).numpy()).pvalue > 1e-4


@pytest.mark.triton_slow
def test_the_tail_is_drawn_as_often_as_it_should_be():
    """Uniform numbers in float32, as those of Gumbel noise often are, lose tokens rarer than 2^-24, which is sampling colder.

    Here a uniform number has 53 bits, and blocks of tokens are inverted in float64: all such tokens together, here 76 in a
    million draws, are drawn as often as they should be but for less than 1 in a million draws.
    """
    hidden, weight = torch.tensor([[1.0]]), torch.cat([torch.zeros(8), torch.full((6_000,), -16.1029)])[:, None]
    p = oracle_logprob(hidden, weight, None, 1.0, None)[0].exp()
    assert p[8] < 2**-26
    assert 7e-5 < p[8:].sum() < 8e-5
    # Where a draw of one of the first 8 becomes one of a rare token: 16 numbers a time, between which it must be.
    low, high = 0.0, 1.0
    while high - low > 1e-8:
        uniforms = low + (high - low) * torch.arange(1, 17, dtype=torch.float64) / 17
        common = int((sample_rows(hidden, weight, None, uniforms[None]).tokens < 8).sum())
        low, high = ([low, *uniforms.tolist()][common], [*uniforms.tolist(), high][common])
    assert abs((1 - high) - float(p[8:].sum())) < 1e-6


@pytest.mark.triton_slow
@pytest.mark.parametrize("block", [1, 40, 131, 132, 500])
def test_block_size_changes_nothing(monkeypatch, block):
    """Integer factors, whose products are exact: every split into blocks gives the same bits."""
    g = torch.Generator().manual_seed(5)
    hidden, weight = torch.randint(-2, 3, (29, 4), generator=g).float(), torch.randint(-2, 3, (131, 4), generator=g).float()
    uniforms = torch.rand(29, 6, generator=g, dtype=torch.float64)
    whole = sample_rows(hidden, weight, None, uniforms, temperature=0.7, excluded=130, top_k=3)
    best = argmax_rows(hidden, weight, None, excluded=130)
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    split = sample_rows(hidden, weight, None, uniforms, temperature=0.7, excluded=130, top_k=3)
    assert all(map(torch.equal, whole, split))
    assert torch.equal(best, argmax_rows(hidden, weight, None, excluded=130))


@pytest.mark.triton_slow
def test_a_row_does_not_depend_on_its_neighbours():
    g = torch.Generator().manual_seed(6)
    hidden, weight = torch.randint(-2, 3, (9, 4), generator=g).float(), torch.randint(-2, 3, (300, 4), generator=g).float()
    uniforms = torch.rand(9, 5, generator=g, dtype=torch.float64)
    together = sample_rows(hidden, weight, None, uniforms, top_k=2)
    for row in range(9):
        alone = sample_rows(hidden[row : row + 1], weight, None, uniforms[row : row + 1], top_k=2)
        assert all(torch.equal(a[0], b[row]) for a, b in zip(alone, together, strict=True))


@pytest.mark.triton_slow
def test_draw_k_does_not_depend_on_the_other_draws():
    """Candidate 0 of K draws is the draw of K = 1: what pairs the arms."""
    hidden, weight, bias, uniforms = make(30, 509, 7, k=8)
    many = sample_rows(hidden, weight, bias, uniforms)
    for k in range(8):
        one = sample_rows(hidden, weight, bias, uniforms[:, k : k + 1])
        assert torch.equal(one.tokens[:, 0], many.tokens[:, k])
        # the interpreter's products differ in the last bit with a row's place in its tile
        torch.testing.assert_close(one.logprobs[:, 0], many.logprobs[:, k], rtol=0, atol=2e-6 if TRITON else 0)


@pytest.mark.triton_slow
@pytest.mark.skipif(TRITON, reason="the bound of the CPU's form")
@pytest.mark.parametrize(("v", "k"), [(4096, 8), (509, 3), (3, 8), (257, 127)])
def test_never_holds_much_more_than_a_block(monkeypatch, v, k):
    """The docstring's bound: one block of logits, whatever R is, and for every V and K that a config allows."""
    block = 1 << 14
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    rows = 4 * block // v
    hidden, weight, bias, uniforms = make(rows, v, 2, k=1)
    uniforms = uniforms.expand(-1, k)
    inputs = max(t.numel() for t in (hidden, weight, torch.empty(rows, k)))
    with LargestTensor() as seen:
        sample_rows(hidden, weight, bias, uniforms, top_k=2)
    assert seen.elements <= max(2 * block, inputs)


@pytest.mark.triton_slow
@pytest.mark.skipif(not TRITON, reason="the bound of the kernels")
def test_kernels_hold_no_row_of_logits(monkeypatch):
    """40 rows of 5,000 tokens, in several lots or one: nowhere near 200,000 logits (the interpreter counts inputs in bytes)."""
    hidden, weight, bias, uniforms = make(40, 5000, 2, k=2)
    for held in (1 << 14, 1 << 24):
        monkeypatch.setattr("tsdfm.kernels.sample_rows_triton.HELD_ELEMENTS", held)
        with LargestTensor() as seen:
            sample_rows(hidden, weight, bias, uniforms, top_k=1)
            argmax_rows(hidden, weight, bias)
        assert seen.elements <= 4 * max(weight.numel(), 40 * 3 * CDF_BLOCK) < 40 * 5000


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("block", [1, 100, 1 << 21])
def test_every_output_is_written(monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK_ELEMENTS", block)
    hidden, weight, bias, uniforms = make(37, 19, 4)
    out = sample_rows(hidden, weight, bias, uniforms, top_k=3)
    assert (out.tokens < 19).all()
    assert (out.topk_ids < 19).all()
    assert out.logprobs.isfinite().all()
    assert out.topk_logprobs.isfinite().all()
    assert (argmax_rows(hidden, weight, bias) < 19).all()


def test_no_rows():
    out = sample_rows(torch.zeros(0, 3), torch.zeros(5, 3), None, torch.zeros(0, 4).double(), top_k=2)
    assert [tuple(t.shape) for t in out] == [(0, 4), (0, 4), (0, 2), (0, 2)]
    assert argmax_rows(torch.zeros(0, 3), torch.zeros(5, 3), None).shape == (0,)


@pytest.mark.triton_slow
@pytest.mark.parametrize("k", [0, 1, 7, 36])
def test_top_k_is_exact(k):
    """Distinct exact logits in a known order, one id excluded: ids by falling probability, and nothing else."""
    order = torch.randperm(37, generator=torch.Generator().manual_seed(1))
    weight = torch.empty(37, 1)
    weight[order, 0] = -torch.arange(37).float() / 4
    out = sample_rows(torch.ones(2, 1), weight, None, torch.full((2, 1), 0.5).double(), excluded=int(order[2]), top_k=k)
    wanted = [v for v in order.tolist() if v != int(order[2])][:k]
    assert out.topk_ids.tolist() == [wanted, wanted]
    truth = oracle_logprob(torch.ones(2, 1), weight, None, 1.0, int(order[2]))
    torch.testing.assert_close(out.topk_logprobs.double(), truth[:, wanted], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("v", "k"), [(7, 7), (130, 1), (130, 6), (300, 17), (300, 300), (1000, 40)])
def test_ties_go_to_the_lower_id(v, k):
    """Three values only, so that the k-th place is tied, within blocks and across them; -0.0 equals 0.0."""
    g = torch.Generator().manual_seed(v + k)
    weight = torch.randint(-1, 2, (v, 1), generator=g).float()
    weight[weight == 0] = torch.where(torch.rand(int((weight == 0).sum()), generator=g) < 0.5, -0.0, 0.0)
    hidden, uniforms = torch.tensor([[1.0], [-2.0]]), torch.full((2, 1), 0.5).double()
    out = sample_rows(hidden, weight, None, uniforms, excluded=3, top_k=k)
    for row in range(2):
        value = hidden[row, 0] * weight[:, 0]
        value[3] = -math.inf
        assert out.topk_ids[row].tolist() == sorted(range(v), key=lambda i: (-float(value[i]), i))[:k]
    best = argmax_rows(hidden, weight, None, excluded=3)
    assert torch.equal(best, sample_rows(hidden, weight, None, uniforms, excluded=3, top_k=1).topk_ids[:, 0])
    definition = sample_rows_reference(hidden, weight, None, uniforms, excluded=3, top_k=k)
    assert torch.equal(definition.topk_ids, out.topk_ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_accumulate_in_float32(dtype):
    """The oracle sees the same rounded inputs, so the tolerances are those of float32."""
    hidden, weight, bias, uniforms = make(17, 509, 33)
    hidden, weight, bias = hidden.to(dtype), weight.to(dtype), bias.to(dtype)
    out = sample_rows(hidden, weight, bias, uniforms, temperature=0.7, excluded=5, top_k=9)
    truth = oracle_logprob(hidden, weight, bias, 0.7, 5)
    assert out.logprobs.dtype == out.topk_logprobs.dtype == torch.float32
    assert_inverts(out.tokens, uniforms, truth, 1e-5)
    torch.testing.assert_close(out.logprobs.double(), truth.gather(-1, out.tokens), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(out.topk_logprobs.double(), truth.topk(9, -1).values, rtol=1e-5, atol=2e-5)
    assert torch.equal(argmax_rows(hidden, weight, bias), oracle_logprob(hidden, weight, bias).argmax(-1))


def test_inputs_of_any_strides():
    hidden, weight, bias, uniforms = make(9, 261, 20)
    plain = sample_rows(hidden, weight, bias, uniforms, top_k=5)
    spread = torch.stack([hidden.T, torch.full_like(hidden.T, torch.nan)], -1)[..., 0].T
    repeated = bias.repeat_interleave(3)[::3]
    strided = sample_rows(spread, weight.T.contiguous().T, repeated, uniforms.T.contiguous().T, top_k=5)
    assert torch.equal(plain.tokens, strided.tokens)
    assert torch.equal(plain.topk_ids, strided.topk_ids)
    torch.testing.assert_close(plain.topk_logprobs, strided.topk_logprobs, rtol=1e-5, atol=1e-5)
    assert torch.equal(argmax_rows(spread, weight.T.contiguous().T, repeated), argmax_rows(hidden, weight, bias))


@pytest.mark.triton_slow
def test_draws_of_one_row_are_independent():
    """60,000 pairs of draws (in the interpreter 1,000) at uniforms of their own fill the product of the softmax with itself."""
    weight = torch.tensor([[0.0], [0.5], [1.0], [1.5]])
    uniforms = torch.rand(1, 2_000 if TRITON else 120_000, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    first, second = sample_rows(torch.ones(1, 1), weight, None, uniforms).tokens.view(2, -1)
    p = oracle_logprob(torch.ones(1, 1), weight, None)[0].exp()
    wanted = (p[:, None] * p).flatten() * len(first)
    assert chisquare(torch.bincount(first * 4 + second, minlength=16).numpy(), wanted.numpy()).pvalue > 1e-4


def test_a_block_far_below_the_peak_has_no_mass():
    """u = 0 gives the first block with a token within 80 nats of the peak, whose masses float32 holds in full."""
    weight = torch.zeros(3 * CDF_BLOCK, 1)
    weight[CDF_BLOCK :] = 79.0
    weight[2 * CDF_BLOCK :] = 81.0
    out = sample_rows(torch.ones(1, 1), weight, None, torch.tensor([[0.0, BELOW_ONE]]).double(), top_k=1)
    assert out.tokens.tolist() == [[CDF_BLOCK, 3 * CDF_BLOCK - 1]]
    assert out.topk_ids.tolist() == [[2 * CDF_BLOCK]]


@pytest.mark.triton_slow
def test_the_reference_can_be_forced(monkeypatch):
    hidden, weight, bias, uniforms = make(5, 37, 6)
    monkeypatch.setenv("TSDFM_KERNELS", "reference")
    monkeypatch.setattr("tsdfm.kernels.sample_rows._draw", lambda *_: pytest.fail("not the reference"))
    out, definition = (f(hidden, weight, bias, uniforms, top_k=3) for f in (sample_rows, sample_rows_reference))
    assert torch.equal(out.tokens, definition.tokens)
    assert torch.equal(out.topk_logprobs, definition.topk_logprobs.float())
    assert torch.equal(argmax_rows(hidden, weight, bias), oracle_logprob(hidden, weight, bias).argmax(-1))


@pytest.mark.triton_slow
def test_argmax_against_the_oracle():
    hidden, weight, bias, _ = make(200, 509, 33)
    bias[::5] = -torch.inf
    for excluded in (None, int(oracle_logprob(hidden, weight, bias)[0].argmax())):
        expected = oracle_logprob(hidden, weight, bias, 1.0, excluded)
        best = argmax_rows(hidden, weight, bias, excluded=excluded)
        torch.testing.assert_close(expected.gather(-1, best[:, None])[:, 0], expected.amax(-1), rtol=0, atol=1e-5)
        assert (best != excluded).all() if excluded is not None else True


@pytest.mark.triton_slow
@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature"):
        sample_rows(torch.zeros(1, 1), torch.zeros(2, 1), None, torch.zeros(1, 1).double(), temperature=temperature)


@pytest.mark.triton_slow
@pytest.mark.parametrize("shape", [(2,), (3, 1), (2, 1, 1)])
def test_uniforms_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="uniforms"):
        sample_rows(torch.zeros(2, 1), torch.zeros(2, 1), None, torch.zeros(shape).double())


@pytest.mark.triton_slow
@pytest.mark.parametrize(("change", "message"), [
    ({"top_k": 6}, "top_k"), ({"top_k": -1}, "top_k"), ({"weight": torch.zeros(5, 4)}, "hidden"),
    ({"weight": torch.zeros(5, 3).half()}, "dtype"), ({"bias": torch.zeros(4)}, "bias"),
])
def test_what_does_not_fit_together_is_refused(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "bias": None, "uniforms": torch.zeros(2, 1).double()}
    with pytest.raises(ValueError, match=message):
        sample_rows(**(arguments | change))


@pytest.mark.triton_slow
@given(v=st.integers(2, 400), seed=st.integers(0, 2**20), scale=st.sampled_from([0.0, 0.1, 1.0, 10.0, 100.0]),
       u=st.one_of(st.floats(0, BELOW_ONE), st.sampled_from([0.0, 5e-324, 2**-53, 0.5, BELOW_ONE])))
def test_inversion_holds_for_any_uniform(v, seed, scale, u):
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.ones(1, 1), torch.randn(v, 1, generator=g) * scale
    excluded = int(torch.randint(v, (), generator=g))
    uniforms = torch.tensor([[u]], dtype=torch.float64)
    out = sample_rows(hidden, weight, None, uniforms, excluded=excluded)
    assert_inverts(out.tokens, uniforms, oracle_logprob(hidden, weight, None, 1.0, excluded), 1e-6)
