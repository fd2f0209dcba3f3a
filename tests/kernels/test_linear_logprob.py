"""`linear_logprob` and `summed_nll` against a float64 oracle; never worse than PyTorch's own float32."""

import math
import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from tsdfm.kernels import linear_buckets as module
from tsdfm.kernels.linear_logprob import linear_logprob, linear_logprob_reference, linear_logprobs, summed_nll

# (N, V, D): one row, a prime V, an odd D, two tokens, one even shape, two ragged ones, no row.
SHAPES = [(1, 2, 1), (1, 257, 3), (5, 2, 5), (7, 509, 33), (256, 512, 128), (255, 507, 128), (255, 507, 123), (0, 11, 4)]
pytestmark = pytest.mark.triton  # every test of this file, those marked triton_slow with the slow tests
TRITON = os.environ.get("TSDFM_KERNELS") == "triton"  # in the interpreter: see test_interpreted.py
TOLERANCE = 2e-5  # nats; PyTorch's own float32 error is added to it


def make(n, v, d, *, bias, scale=1.0, dtype=torch.float32):
    g = torch.Generator().manual_seed(n * 7919 + v * 31 + d)
    hidden, weight = torch.randn(n, d, generator=g, dtype=dtype) * scale, torch.randn(v, d, generator=g, dtype=dtype)
    if n and v > n:
        weight[:n:3] = hidden[::3]  # planted peaks
    target = torch.randint(v, (n,), generator=g)
    if n:
        target[0] = 0 if v < n else min(n, v) - 1
    return hidden, weight, torch.randn(v, generator=g, dtype=dtype) if bias else None, target


def double(*tensors):
    return tuple(None if t is None else t.double() if t.is_floating_point() else t for t in tensors)


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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "v", "d"), SHAPES)
def test_error_is_no_worse_than_torch(n, v, d, bias):
    hidden, weight, b, target = make(n, v, d, bias=bias)
    truth = linear_logprob_reference(*double(hidden, weight, b, target))
    torch_error = (linear_logprob_reference(hidden, weight, b, target) - truth).abs()
    out = linear_logprob(hidden, weight, b, target)
    assert out.shape == (n,)
    assert out.dtype == torch.float32
    assert ((out - truth).abs() <= torch_error + TOLERANCE).all()


@pytest.mark.skipif(TRITON, reason="float64 is for the CPU's form")
@pytest.mark.parametrize(("n", "v", "d"), SHAPES)
def test_float64_is_the_oracle(n, v, d):
    hidden, weight, b, target = make(n, v, d, bias=True, dtype=torch.float64)
    torch.testing.assert_close(linear_logprob(hidden, weight, b, target), linear_logprob_reference(hidden, weight, b, target),
                               rtol=1e-12, atol=1e-12)


def test_the_reference_is_the_definition():
    """log p written out with Python's math, no torch reduction involved."""
    hidden, weight, b, target = make(4, 5, 3, bias=True, dtype=torch.float64)
    for row in range(4):
        logits = [sum(float(h * w) for h, w in zip(hidden[row], weight[v], strict=True)) + float(b[v]) for v in range(5)]
        expected = logits[int(target[row])] - math.log(sum(math.exp(x) for x in logits))
        assert linear_logprob_reference(hidden, weight, b, target)[row].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("size", [1e2, 1e4])
@pytest.mark.parametrize("sign", [1, -1])
def test_extreme_logits(size, sign):
    """Logits that are exact in float32 (D = 1), near +-size: PyTorch's log_softmax loses nothing, so neither may we."""
    weight = sign * torch.tensor([[size], [size - 1], [size - 2], [size - 40], [0.0]])
    hidden, target = torch.ones(5, 1), torch.arange(5)
    truth = linear_logprob_reference(*double(hidden, weight, None), target)
    torch_error = (linear_logprob_reference(hidden, weight, None, target) - truth).abs()
    out = linear_logprob(hidden, weight, None, target)
    assert out.isfinite().all()
    assert (out <= 0).all()
    assert ((out - truth).abs() <= torch_error + TOLERANCE).all()


def test_opposite_extremes_in_one_row():
    weight = torch.tensor([[1e4], [-1e4], [0.0]])
    out = linear_logprob(torch.ones(3, 1), weight, None, torch.arange(3))
    assert out.tolist() == [0.0, -2e4, -1e4]


@pytest.mark.parametrize("v", [2, pytest.param(509, marks=pytest.mark.triton_slow)])
def test_excluded_columns_have_no_mass(v):
    """-inf bias columns: the rest is a distribution of its own, and a target among them has log-probability -inf."""
    hidden, weight, b, _ = make(6, v, 7, bias=True)
    closed = torch.arange(v) % 2 == 1
    b[closed] = -torch.inf
    open_ids = (~closed).nonzero()[:, 0]
    truth = F.log_softmax((hidden.double() @ weight[open_ids].double().T + b[open_ids].double()), -1)
    for column in sorted({*range(0, len(open_ids), 12), len(open_ids) - 1}):
        v_id = int(open_ids[column])
        out = linear_logprob(hidden, weight, b, torch.full((6,), v_id))
        torch.testing.assert_close(out.double(), truth[:, column], rtol=1e-5, atol=1e-5)
    assert (linear_logprob(hidden, weight, b, torch.full((6,), 1)) == -torch.inf).all()


def test_ignored_rows_are_not_computed():
    """They give 0 without a gradient, whatever stands in hidden."""
    hidden, weight, b, target = make(9, 31, 5, bias=True)
    whole = linear_logprob(hidden, weight, b, target)
    ignored = torch.arange(9) % 3 == 0
    out = linear_logprob(hidden.masked_fill(ignored[:, None], torch.nan).requires_grad_(), weight, b, target.masked_fill(ignored, -100),
                         ignore_index=-100)
    torch.testing.assert_close(out[~ignored].detach(), whole[~ignored], rtol=1e-6, atol=1e-6)
    assert (out[ignored] == 0).all()
    leaf = hidden.clone().requires_grad_()
    slope, = torch.autograd.grad(
        linear_logprob(leaf, weight, b, target.masked_fill(ignored, 7), ignore_index=7).sum(), leaf)
    wanted = ignored | (target == 7)
    assert (slope[wanted] == 0).all()
    assert (slope[~wanted] != 0).any(-1).all()
    assert torch.equal(linear_logprob(hidden, weight, b, torch.full((9,), -1), ignore_index=-1), torch.zeros(9))


def test_log_probabilities_of_several_tokens_which_may_repeat():
    hidden, weight, b, _ = make(8, 40, 5, bias=True)
    ids = torch.randint(40, (8, 4), generator=torch.Generator().manual_seed(1))
    ids[:, 2] = ids[:, 0]
    truth = F.log_softmax(hidden.double() @ weight.double().T + b.double(), -1).gather(-1, ids)
    torch.testing.assert_close(linear_logprobs(hidden, weight, b, ids).double(), truth, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(TRITON, reason="float64 is for the CPU's form")
def test_gradcheck_of_the_closing_arithmetic():
    hidden, weight, b, target = make(6, 7, 3, bias=True, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (hidden, weight, b)]
    ids = torch.stack([target, target.roll(1), target], 1)
    scored = torch.tensor([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda h, w, c: linear_logprob(h, w, c, target), inputs)
    assert torch.autograd.gradcheck(lambda h, w, c: linear_logprobs(h, w, c, ids), inputs)
    assert torch.autograd.gradcheck(
        lambda h, w, c: summed_nll(h.view(2, 3, 3), w, c, target.view(2, 3), scored=scored), inputs)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("block", [1, 100, 1 << 20])
def test_every_output_is_written(monkeypatch, block):
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    hidden, weight, b, target = make(37, 11, 4, bias=True)
    assert linear_logprob(hidden, weight, b, target).isfinite().all()
    assert summed_nll(hidden.view(1, 37, 4), weight, b, target.view(1, 37), scored=torch.ones(1, 37)).isfinite().all()


def test_inputs_are_left_alone():
    tensors = make(9, 31, 5, bias=True)
    before = [t.clone() for t in tensors]
    linear_logprob(*tensors)
    assert all(map(torch.equal, tensors, before))


@pytest.mark.parametrize(("hidden", "weight", "target", "bias", "named"), [
    ((3, 4), (5, 6), (3,), None, "weight"),
    ((3, 4, 1), (5, 4), (3,), None, "hidden"),
    ((3, 4), (5, 4), (4,), None, "target"),
    ((3, 4), (5, 4), (3, 1), None, "target"),
    ((3, 4), (5, 4), (3,), (4,), "bias"),
])
def test_shapes_that_do_not_fit_are_refused(hidden, weight, target, bias, named):
    with pytest.raises(ValueError, match=named):
        linear_logprob(torch.zeros(hidden), torch.zeros(weight), None if bias is None else torch.zeros(bias),
                       torch.zeros(target, dtype=torch.long))


@pytest.mark.triton_slow
@given(c=st.integers(0, 4), t=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_summed_nll_is_the_weighted_sum(c, t, seed):
    g = torch.Generator().manual_seed(seed)
    hidden, weight, b = (torch.randn(*s, generator=g) for s in ((c, t, 3), (7, 3), (7,)))
    target = torch.randint(7, (c, t), generator=g)
    scored = torch.rand(c, t, generator=g) * (torch.rand(c, t, generator=g) < 0.6)
    logprob = (hidden.double() @ weight.double().T + b.double()).log_softmax(-1)
    wanted = [-sum(float(scored[i, j]) * float(logprob[i, j, target[i, j]]) for j in range(t)) for i in range(c)]
    with torch.no_grad():  # on a GPU, one launch
        fused = summed_nll(hidden, weight, b, target, scored=scored)
    for out in (fused, summed_nll(hidden, weight, b, target, scored=scored)):
        assert out.shape == (c,)
        assert out.tolist() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("processors", [1, 4, 50])
def test_summed_nll_of_many_rows(monkeypatch, processors):
    """Several tiles of rows and parts of the vocabulary, candidates across their borders, one without a scored position."""
    monkeypatch.setattr("tsdfm.kernels.tile_table.PROCESSORS_IN_INTERPRETER", processors)
    g = torch.Generator().manual_seed(processors)
    hidden, weight = torch.randn(5, 31, 20, generator=g), torch.randn(700, 20, generator=g)
    target, scored = torch.randint(700, (5, 31), generator=g), torch.rand(5, 31, generator=g)
    scored[2], scored[3, ::2] = 0, 0
    logprob = (hidden.double() @ weight.double().T).log_softmax(-1).gather(-1, target[..., None])[..., 0]
    with torch.no_grad():
        out = summed_nll(hidden, weight, None, target, scored=scored)
    torch.testing.assert_close(out.double(), -(logprob * scored).sum(-1), rtol=1e-5, atol=1e-5)
    assert out[2] == 0


def test_summed_nll_with_a_boolean_weight():
    hidden, weight, target = torch.randn(2, 3, 4), torch.randn(5, 4), torch.randint(5, (2, 3))
    mask = torch.tensor([[True, False, True], [False, False, False]])
    out = summed_nll(hidden, weight, None, target, scored=mask)
    assert torch.equal(out, summed_nll(hidden, weight, None, target, scored=mask.float()))
    assert out[1] == 0


def test_a_position_of_weight_zero_is_not_computed():
    """NaN states, -inf log-probabilities and targets out of range at unscored positions do no harm."""
    hidden, weight, b = torch.randn(2, 3, 4), torch.randn(5, 4), torch.tensor([0.0, 0, 0, 0, -torch.inf])
    target, scored = torch.tensor([[0, 1, 99], [2, 4, 3]]), torch.tensor([[1.0, 0.5, 0.0], [1.0, 0.0, 2.0]])
    hidden[0, 2] = torch.nan
    out = summed_nll(hidden, weight, b, target, scored=scored)
    assert out.isfinite().all()
    assert float(out[1]) == pytest.approx(float(
        -linear_logprob(hidden[1, :1], weight, b, target[1, :1])[0]
        - 2 * linear_logprob(hidden[1, 2:], weight, b, target[1, 2:])[0]), abs=1e-5)


def test_an_impossible_token_has_an_infinite_nll():
    b = torch.tensor([0.0, -torch.inf])
    assert summed_nll(torch.zeros(1, 1, 1), torch.zeros(2, 1), b, torch.tensor([[1]]), scored=torch.ones(1, 1)).item() == torch.inf


@pytest.mark.triton_slow
def test_targets_are_a_distribution():
    """Over all targets the probabilities of one row sum to one."""
    hidden, weight, b, _ = make(3, 509, 33, bias=True)
    for row in range(3):
        logprob = linear_logprob(hidden[row].expand(509, -1), weight, b, torch.arange(509))
        assert float(logprob.double().exp().sum()) == pytest.approx(1, abs=1e-5)
