"""The product by oneDNN: the values and gradients of `F.linear`, whatever the shape."""

import pytest
import torch
import torch.nn.functional as F

from tsdfm.kernels import linear as module
from tsdfm.kernels.linear import linear, linear_gelu

SHAPES = [((1, 1), 1), ((5, 7), 3), ((2, 3, 8), 17), ((64, 192), 768), ((3, 192), 2048)]


def inputs(shape, out, bias, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape) + out)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    weight = torch.randn(out, shape[-1], generator=generator, dtype=dtype)
    return x, weight, torch.randn(out, generator=generator, dtype=dtype) if bias else None


def relative(found, wanted):
    return float((found.double() - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_values(shape, out, bias):
    x, weight, b = inputs(shape, out, bias)
    wanted = F.linear(x.double(), weight.double(), None if b is None else b.double())
    with torch.no_grad():
        assert relative(linear(x, weight, b), wanted) < 1e-6
        assert relative(linear_gelu(x, weight, b), F.gelu(wanted, approximate="tanh")) < 1e-6


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "out"), SHAPES)
def test_gradients(shape, out, bias):
    leaves = [t for t in inputs(shape, out, bias) if t is not None]
    doubles = [t.double().requires_grad_() for t in leaves]
    leaves = [t.requires_grad_() for t in leaves]
    (linear(*leaves) / shape[-1]).sin().sum().backward()
    (F.linear(*doubles) / shape[-1]).sin().sum().backward()
    for mine, wanted in zip(leaves, doubles, strict=True):
        assert relative(mine.grad, wanted.grad) < 1e-5


def test_gradients_are_computed_only_where_asked():
    x, weight, bias = inputs((4, 8), 6, True)
    weight.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert torch.allclose(weight.grad, x.sum(0).expand(6, 8), atol=1e-5)
    assert x.grad is None
    assert bias.grad is None


@pytest.mark.parametrize("x", [torch.randn(3, 4).double(), torch.randn(0, 4)])
def test_what_onednn_does_not_take_goes_through_torch(x, monkeypatch):
    monkeypatch.setattr(module, "_product", lambda *_: pytest.fail("oneDNN was asked"))
    weight = torch.randn(5, 4, dtype=x.dtype)
    assert torch.equal(linear(x, weight), F.linear(x, weight))


def test_inputs_that_are_not_contiguous():
    x, weight, bias = inputs((6, 8), 5, True)
    strided, transposed = x.t().contiguous().t(), weight.t().contiguous().t()
    with torch.no_grad():
        for function, wanted in ((linear, lambda y: y), (linear_gelu, lambda y: F.gelu(y, approximate="tanh"))):
            found = function(strided, transposed, bias.repeat_interleave(3)[::3])
            assert torch.allclose(found, wanted(F.linear(x, weight, bias)), atol=1e-5)
