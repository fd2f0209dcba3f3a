"""`linear_buckets` and its gradient against the float64 definition: shapes, dtypes, extremes, blocks, memory, offsets."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.test_linear_logprob import LargestTensor, double
from tsdfm.kernels import linear_buckets as module
from tsdfm.kernels.linear_buckets import linear_buckets, linear_buckets_reference

pytestmark = pytest.mark.triton  # every test of this file, those marked triton_slow with the slow tests
TRITON = os.environ.get("TSDFM_KERNELS") == "triton"  # in the interpreter: see test_interpreted.py
# (N, V, D, k): one row, two tokens, a prime V over several blocks, a D beyond and between the kernels' depths, all chosen.
SHAPES = [(1, 2, 1, 1), (5, 2, 5, 1), (7, 509, 33, 1), (70, 257, 40, 4), (17, 300, 128, 16), (3, 5, 4, 5), (0, 11, 4, 2)]


def make(n, v, d, k, dtype=torch.float32):
    g = torch.Generator().manual_seed(n * 7919 + v * 31 + d + k)
    hidden, weight, bias = (torch.randn(*size, generator=g) for size in ((n, d), (v, d), (v,)))
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), torch.randint(v, (n, k), generator=g)


def pull(found, seed=3):
    """A scalar that depends on every number of both outputs, with uneven weights; -inf (no rest) takes no part."""
    g = torch.Generator().manual_seed(seed)
    parts = [torch.randn(part.shape, generator=g).to(part.dtype) for part in found]
    return sum((weight * part.masked_fill(part == -torch.inf, 0)).sum() for weight, part in zip(parts, found, strict=True))


def gradients(function, hidden, weight, bias, ids):
    inputs = [t.detach().requires_grad_() for t in (hidden, weight, bias)]
    return torch.autograd.grad(pull(function(*inputs, ids)), inputs)


def close(found, wanted, tolerance):
    """Relative to the largest number of the tensor: what accumulates is of that size."""
    scale = wanted.abs().max() if wanted.numel() else 1.0
    torch.testing.assert_close(found.double(), wanted.double(), rtol=tolerance, atol=tolerance * max(float(scale), 1e-3))


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_the_oracle(shape, has_bias):
    hidden, weight, bias, ids = make(*shape)
    bias = bias if has_bias else None
    found, truth = linear_buckets(hidden, weight, bias, ids), linear_buckets_reference(*double(hidden, weight, bias, ids))
    assert (found.chosen.dtype, found.rest.dtype, found.logprob.dtype) == (torch.float32, torch.float64, torch.float32)
    for ours, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s[0] and s[3] < s[1]])
def test_gradient_against_the_oracle(shape):
    hidden, weight, bias, ids = make(*shape)
    truth = gradients(linear_buckets_reference, *double(hidden, weight, bias, ids))
    for ours, wanted in zip(gradients(linear_buckets, hidden, weight, bias, ids), truth, strict=True):
        close(ours, wanted, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_accumulate_in_float32(dtype):
    """The oracle sees the same rounded inputs: values to float32's tolerance, gradients to the rounding of their own dtype."""
    hidden, weight, bias, ids = make(19, 300, 40, 3, dtype)
    found, truth = linear_buckets(hidden, weight, bias, ids), linear_buckets_reference(*double(hidden, weight, bias, ids))
    for ours, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=2e-5)
    slopes = gradients(linear_buckets_reference, *double(hidden, weight, bias, ids))
    for ours, wanted in zip(gradients(linear_buckets, hidden, weight, bias, ids), slopes, strict=True):
        assert ours.dtype == dtype
        close(ours, wanted, 1e-2)


@pytest.mark.skipif(TRITON, reason="float64 is for the CPU's form")
@pytest.mark.parametrize(("rows", "block"), [(1024, 1 << 20), (3, 12), (1, 1)])
def test_gradcheck(monkeypatch, rows, block):
    monkeypatch.setattr(module, "BLOCK_ROWS", rows)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    hidden, weight, bias, ids = make(7, 11, 4, 3, torch.float64)
    ids[2, 1] = ids[2, 0]
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda h, w, b: tuple(linear_buckets(h, w, b, ids)), inputs)


def test_an_id_that_stands_twice():
    hidden, weight, bias, ids = make(6, 140, 5, 4)
    ids[:, 3] = ids[:, 0]
    ids[0] = 7
    found, truth = linear_buckets(hidden, weight, bias, ids), linear_buckets_reference(*double(hidden, weight, bias, ids))
    for ours, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)
    slopes = gradients(linear_buckets_reference, *double(hidden, weight, bias, ids))
    for ours, wanted in zip(gradients(linear_buckets, hidden, weight, bias, ids), slopes, strict=True):
        close(ours, wanted, 1e-5)


def test_no_rest():
    """Where all others are taken out there is no mass, and neither values nor gradients are NaN."""
    hidden, weight, bias, ids = make(4, 3, 2, 1)
    bias = torch.full((3,), -torch.inf).scatter(0, ids[:1, 0], 0.5)
    ids = ids[:1].expand(4, 1)
    found = linear_buckets(hidden, weight, bias, ids)
    assert (found.rest == -torch.inf).all()
    assert torch.equal(found.logprob, torch.zeros(4))
    for slope in gradients(linear_buckets, hidden, weight, bias, ids):
        assert slope.isfinite().all()
    h = hidden.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(linear_buckets(h, weight, bias, ids).logprob.sum(), h)[0], torch.zeros(4, 2))


def test_excluded_columns_have_no_mass_and_no_gradient():
    hidden, weight, bias, ids = make(9, 300, 6, 1)
    closed = torch.arange(300) % 2 == 1
    ids = ids // 2 * 2
    bias = bias.masked_fill(closed, -torch.inf)
    part = linear_buckets_reference(*double(hidden, weight[~closed], bias[~closed], ids // 2))
    torch.testing.assert_close(linear_buckets(hidden, weight, bias, ids).rest.double(), part.rest, rtol=1e-5, atol=1e-5)
    _, grad_weight, grad_bias = gradients(linear_buckets, hidden, weight, bias, ids)
    assert (grad_weight[closed] == 0).all()
    assert (grad_bias[closed] == 0).all()
    assert grad_weight.isfinite().all()


@pytest.mark.parametrize("size", [1e2, 1e4, -1e4])
def test_extreme_logits(size):
    """Logits that are exact in float32 (D = 1): the gap to the rest keeps the bits that a log-sum-exp of all would lose."""
    weight = torch.tensor([[size], [size - 1], [size - 30], [0.0]])
    found = linear_buckets(torch.ones(4, 1), weight, None, torch.arange(4)[:, None])
    truth = linear_buckets_reference(torch.ones(4, 1).double(), weight.double(), None, torch.arange(4)[:, None])
    for ours, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-6, atol=1e-6)
    hidden = torch.ones(4, 1, requires_grad=True)
    slope, = torch.autograd.grad(linear_buckets(hidden, weight, None, torch.arange(4)[:, None]).logprob.sum(), hidden)
    exact = torch.ones(4, 1, dtype=torch.float64, requires_grad=True)
    wanted, = torch.autograd.grad((exact @ weight.double().T).log_softmax(-1).diagonal().sum(), exact)
    torch.testing.assert_close(slope.double(), wanted, rtol=1e-5, atol=2e-3)


def test_a_probability_of_nearly_one_is_exact():
    weight = torch.tensor([[20.0], [0.0], [0.0]])
    found = linear_buckets(torch.ones(1, 1), weight, None, torch.zeros(1, 1, dtype=torch.long)).logprob
    assert float(found) == pytest.approx(-2 * 2.061153620314381e-09, rel=1e-5)  # log1p(2 e^-20); float32 near 1 has steps of 6e-8


def test_inputs_of_any_strides():
    hidden, weight, bias, ids = make(9, 261, 20, 3)
    plain = linear_buckets(hidden, weight, bias, ids)
    slopes = gradients(linear_buckets, hidden, weight, bias, ids)
    spread = torch.stack([hidden.T, torch.full_like(hidden.T, torch.nan)], -1)[..., 0].T
    strided = spread, weight.T.contiguous().T, bias.repeat_interleave(3)[::3], ids.T.contiguous().T
    for ours, wanted in zip(linear_buckets(*strided), plain, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)
    for ours, wanted in zip(gradients(linear_buckets, *strided), slopes, strict=True):
        close(ours, wanted, 1e-5)


@pytest.mark.triton_slow
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (True, False, True)])
def test_only_the_gradients_that_are_asked_for(wanted):
    hidden, weight, bias, ids = make(5, 150, 6, 2)
    whole = gradients(linear_buckets, hidden, weight, bias, ids)
    inputs = [t.detach().requires_grad_(ask) for t, ask in zip((hidden, weight, bias), wanted, strict=True)]
    pull(linear_buckets(*inputs, ids)).backward()
    for leaf, ask, all_of_it in zip(inputs, wanted, whole, strict=True):
        assert torch.equal(leaf.grad, all_of_it) if ask else leaf.grad is None


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(("rows", "block"), [(1, 1), (5, 100), (1024, 1 << 20)])
def test_every_output_is_written(monkeypatch, rows, block):
    monkeypatch.setattr(module, "BLOCK_ROWS", rows)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
    hidden, weight, bias, ids = make(37, 131, 4, 2)
    assert all(part.isfinite().all() for part in linear_buckets(hidden, weight, bias, ids))
    assert all(part.isfinite().all() for part in gradients(linear_buckets, hidden, weight, bias, ids))


def test_blocks_of_any_shape_agree(monkeypatch):
    """Integer factors, whose products are exact; in the interpreter it is the splits of the vocabulary that vary."""
    g = torch.Generator().manual_seed(5)
    hidden, weight = torch.randint(-3, 4, (40, 9), generator=g).float(), torch.randint(-3, 4, (700, 9), generator=g).float()
    ids = torch.randint(700, (40, 3), generator=g)
    truth = linear_buckets_reference(hidden.double(), weight.double(), None, ids)
    for rows, block, processors in ((1, 1, 1), (7, 60, 4), (64, 1 << 12, 100)):
        monkeypatch.setattr(module, "BLOCK_ROWS", rows)
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", block)
        monkeypatch.setattr("tsdfm.kernels.tile_table.PROCESSORS_IN_INTERPRETER", processors)
        found = linear_buckets(hidden, weight, None, ids)
        assert torch.equal(found.chosen.double(), truth.chosen)
        torch.testing.assert_close(found.rest.double(), truth.rest, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(TRITON, reason="the bound of the CPU's form")
def test_never_holds_more_than_a_block(monkeypatch):
    hidden, weight, bias, ids = make(500, 997, 8, 2)
    monkeypatch.setattr(module, "BLOCK_ROWS", 100)
    monkeypatch.setattr(module, "BLOCK_ELEMENTS", 9000)  # a little above the inputs, a fiftieth of the logits
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]
    with LargestTensor() as seen:
        pull(linear_buckets(*inputs, ids)).backward()
    assert 0 < seen.elements <= 9000
    with LargestTensor() as seen:
        linear_buckets_reference(hidden, weight, bias, ids)
    assert seen.elements == 500 * 997  # the meter does see what the definition holds


@pytest.mark.skipif(not TRITON, reason="the bound of the kernels")
def test_kernels_hold_no_logits(monkeypatch):
    """60 rows of 2,000 tokens: forward nothing near 120,000 logits, backward one block of G (the interpreter counts bytes)."""
    hidden, weight, bias, ids = make(60, 2000, 2, 2)
    monkeypatch.setattr("tsdfm.kernels.linear_buckets_triton.HELD_ELEMENTS", 60 * 128)
    inputs = [t.requires_grad_() for t in (hidden, weight, bias)]
    with LargestTensor() as seen:
        pull(linear_buckets(*inputs, ids)).backward()
    assert seen.elements <= 4 * 60 * 128 < 60 * 2000


def test_gradients_do_not_depend_on_the_run():
    first, second = (gradients(linear_buckets, *make(70, 257, 40, 4)) for _ in range(2))
    assert all(map(torch.equal, first, second))


@pytest.fixture
def sparse(tmp_path):
    """More than 2^33 bytes of addresses, of which hardly any exist: a file of nothing but holes."""
    (tmp_path / "holes").touch()
    os.truncate(tmp_path / "holes", (2**31 + 2**29) * 4)
    return torch.from_file(str(tmp_path / "holes"), shared=True, size=2**31 + 2**29, dtype=torch.float32)


@pytest.mark.parametrize("which", ["hidden", "weight"])
def test_offsets_beyond_32_bits(sparse, which):
    """Rows so far apart that the last lies past element 2^31."""
    hidden, weight, bias, ids = make(4, 4, 3, 1)
    truth = linear_buckets_reference(*double(hidden, weight, bias, ids))
    far = sparse.as_strided((4, 3), (2**29 + 2**27, 1))
    far.copy_(hidden if which == "hidden" else weight)
    assert 3 * far.stride(0) > 2**31 - 1 - 2**28
    found = linear_buckets(far if which == "hidden" else hidden, far if which == "weight" else weight, bias, ids)
    for ours, wanted in zip(found, truth, strict=True):
        torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not TRITON, reason="the kernel's own arithmetic")
def test_a_gradient_block_beyond_32_bits(sparse):
    """N V > 2^31 elements of G: row 2 of width 2^30 + 8 ends past 2^31, and lands where it should."""
    from tsdfm.kernels.linear_buckets_triton import gradient_kernel

    width = 2**30 + 8
    hidden, weight = torch.ones(3, 1), torch.zeros(128, 1)
    rest, grad_chosen, grad_rest = torch.zeros(3), torch.tensor([[5.0], [6.0], [7.0]]), torch.tensor([1.0, 2.0, 3.0])
    places = torch.tensor([[0], [1], [2]])
    gradient_kernel[(1,)](hidden, weight, None, places, rest, grad_chosen, grad_rest, sparse, 3, width, 1, 1, 1, 1, 1, 0, CHOSEN=1,
                          WIDEN=False, HAS_BIAS=False, TOKENS=128, ROWS=16, DEPTH=16)
    for row in range(3):
        block = sparse[row * width : row * width + 128]
        assert float(block[row]) == 5.0 + row
        assert torch.equal(block[torch.arange(128) != row], torch.full((127,), 1.0 + row))


@pytest.mark.slow
@pytest.mark.skipif(TRITON, reason="two billion logits are too many for the interpreter")
def test_two_to_the_31_logits():
    """N V = 2.2e9: one product each, so the answer is known; nothing near so large is held."""
    n, v = 66_000, 33_000
    weight = torch.zeros(v, 1)
    weight[-1] = 5.0
    with LargestTensor() as seen:
        found = linear_buckets(torch.ones(n, 1), weight, None, torch.full((n, 1), v - 1))
    assert seen.elements <= module.BLOCK_ELEMENTS
    torch.testing.assert_close(found.rest, torch.full((n,), v - 1.0).double().log(), rtol=1e-5, atol=0)
    assert (found.chosen == 5).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden": torch.zeros(3, 4, 1)}, "hidden"), ({"weight": torch.zeros(5, 6)}, "weight"),
    ({"weight": torch.zeros(5, 4).half()}, "dtype"), ({"ids": torch.zeros(2, 1, dtype=torch.long)}, "ids"),
    ({"ids": torch.zeros(3, dtype=torch.long)}, "ids"), ({"bias": torch.zeros(4)}, "bias"),
    ({"ids": torch.full((3, 1), 5)}, r"ids from 5 to 5 must lie in \[0, 5\)"), ({"ids": torch.full((3, 1), -1)}, "must lie"),
])
def test_what_does_not_fit_together_is_refused(change, message):
    arguments = {"hidden": torch.zeros(3, 4), "weight": torch.zeros(5, 4), "bias": None, "ids": torch.zeros(3, 1, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        linear_buckets(**(arguments | change))


@pytest.mark.skipif(TRITON, reason="one choice of several")
def test_autocast_decides_the_dtype():
    hidden, weight, _, ids = make(5, 30, 4, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = linear_buckets(hidden, weight, None, ids)
    narrow = linear_buckets(hidden.bfloat16(), weight.bfloat16(), None, ids)
    assert torch.equal(found.rest, narrow.rest)
    assert not torch.equal(found.rest, linear_buckets(hidden, weight, None, ids).rest)


def test_the_reference_can_be_forced(monkeypatch):
    hidden, weight, bias, ids = make(5, 37, 6, 2)
    monkeypatch.setenv("TSDFM_KERNELS", "reference")
    monkeypatch.setattr("tsdfm.kernels.linear_buckets._buckets_of", lambda *_: pytest.fail("not the reference"))
    assert all(map(torch.equal, linear_buckets(hidden, weight, bias, ids), linear_buckets_reference(hidden, weight, bias, ids)))


@pytest.mark.triton_slow
@given(n=st.integers(1, 6), v=st.integers(2, 300), k=st.integers(1, 4), seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_buckets_make_up_the_whole(n, v, k, seed, scale):
    """The chosen tokens, each once, and the rest: together the log-sum-exp of all."""
    g = torch.Generator().manual_seed(seed)
    hidden, weight = torch.randn(n, 3, generator=g) * scale, torch.randn(v, 3, generator=g)
    ids = torch.randint(v, (n, k), generator=g)
    found = linear_buckets(hidden, weight, None, ids)
    for row in range(n):
        parts = [float(found.rest[row])] + [float(found.chosen[row, ids[row].tolist().index(i)]) for i in set(ids[row].tolist())]
        whole = (hidden[row].double() @ weight.double().T).logsumexp(-1)
        assert float(torch.tensor(parts).double().logsumexp(0)) == pytest.approx(float(whole), rel=1e-5, abs=1e-4)
