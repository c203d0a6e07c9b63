"""RMSNorm by hand is PyTorch's, forward and gradients."""

import pytest
import torch
from torch.nn import functional

from megalite.errors import ShapeError
from megalite.ops import rms_norm


def both(dtype: torch.dtype, shape: tuple[int, ...], eps: float = 1e-5):
    """Results and gradients of ours and of PyTorch's in fp64."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(shape[-1], generator=generator).to(dtype)
    found = []
    for function, kind in ((rms_norm, dtype), (None, torch.float64)):
        a, w = (t.detach().to(kind).requires_grad_() for t in (x, weight))
        y = function(a, w, eps) if function else functional.rms_norm(a, w.shape, w, eps)
        y.backward(upstream.to(kind))
        found.append((y.detach(), a.grad, w.grad))
    return found


@pytest.mark.parametrize("shape", [(37,), (1, 1), (3, 5, 37), (2, 0, 8), (129, 64), (2, 5, 3, 10)])
def test_fp32_is_as_close_to_fp64_as_rounding_lets_it(shape):
    ours, exact = both(torch.float32, shape)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        if mine.numel():
            assert (mine - theirs).abs().max() <= 2e-6 * theirs.abs().max().clamp(min=1)


def test_bf16_is_rounded_once():
    ours, exact = both(torch.bfloat16, (7, 33))
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs).abs().max() <= 2**-8 * theirs.abs().max()


def test_the_gradient_is_that_of_finite_differences():
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, w: rms_norm(a, w, 1e-3), (x, weight))


def test_a_row_of_zeros_stays():
    x = torch.zeros(2, 4, requires_grad=True)
    y = rms_norm(x, torch.ones(4), 1e-6)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert torch.isfinite(x.grad).all()


def test_a_weight_of_another_width_is_refused():
    with pytest.raises(ShapeError, match="rms_norm: weight must be"):
        rms_norm(torch.ones(2, 4), torch.ones(3))
