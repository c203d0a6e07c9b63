"""Norms by hand are PyTorch's, forward and gradients."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from megalite.errors import ShapeError
from megalite.ops import Drops, NormOptions, Update, add_norm, norm

RMS, LAYER = NormOptions(), NormOptions(centred=True)


def both(dtype: torch.dtype, shape: tuple[int, ...], options: NormOptions):
    """Results and gradients of ours and of PyTorch's in fp64."""
    generator = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    weight, bias = (torch.randn(shape[-1], generator=generator).to(dtype) for _ in range(2))
    found = []
    for kind in (dtype, torch.float64):
        a, w, b = (t.detach().to(kind).requires_grad_() for t in (x, weight, bias))
        if kind == dtype:
            y = norm(a, w, b if options.centred else None, options)
        elif options.centred:
            y = functional.layer_norm(a, w.shape, w, b, options.eps)
        else:
            y = functional.rms_norm(a, w.shape, w, options.eps)
        y.backward(upstream.to(kind))
        found.append([t for t in (y.detach(), a.grad, w.grad, b.grad) if t is not None])
    return found


@pytest.mark.parametrize("options", [RMS, LAYER])
@pytest.mark.parametrize("shape", [(37,), (1, 1), (3, 5, 37), (2, 0, 8), (129, 64), (2, 5, 3, 10)])
def test_fp32_is_as_close_to_fp64_as_rounding_lets_it(shape, options):
    ours, exact = both(torch.float32, shape, options)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == torch.float32
        if mine.numel():
            assert (mine - theirs).abs().max() <= 3e-6 * theirs.abs().max().clamp(min=1)


@pytest.mark.parametrize("options", [RMS, LAYER])
def test_bf16_is_rounded_once(options):
    ours, exact = both(torch.bfloat16, (7, 33), options)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.double() - theirs).abs().max() <= 2**-8 * theirs.abs().max()


@pytest.mark.parametrize("options", [RMS, LAYER])
def test_the_gradient_is_that_of_finite_differences(options):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, dtype=torch.float64, requires_grad=True)
    work = partial(norm, options=NormOptions(options.centred, 1e-3))
    assert torch.autograd.gradcheck(work, (x, weight))


def test_a_row_of_zeros_stays():
    x = torch.zeros(2, 4, requires_grad=True)
    y = norm(x, torch.ones(4), None, NormOptions(eps=1e-6))
    y.sum().backward()
    assert torch.equal(y, torch.zeros(2, 4))
    assert torch.isfinite(x.grad).all()


def test_a_weight_in_fp32_keeps_its_digits_beside_a_stream_in_bf16():
    x, weight = torch.randn(5, 16).bfloat16(), torch.full((16,), 1 + 2.0**-10)
    expected = norm(x.float(), weight).bfloat16()
    assert torch.equal(norm(x, weight), expected)


def _wrong(x, *, value=None, weight=4, drops=None):
    update = None if value is None else Update(value, drops=drops)
    return lambda: add_norm(x, update, torch.ones(weight))


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (_wrong(torch.ones(2, 4), weight=3), r"norm: weight must be \[4\] .* came \[3\]"),
        (_wrong(torch.ones(2, 4), value=torch.ones(2, 5)), "the update must be .* like x, came"),
        (_wrong(torch.ones(2, 4), value=torch.ones(2, 4).half()), "came torch.float16"),
        (
            _wrong(torch.ones(2, 4), value=torch.ones(2, 4), drops=Drops(0.1, 0, torch.arange(2))),
            r"x must be \[B, S, D\] and sample_ids \[B\] for dropout, came \[2, 4\] and \[2\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused(work, says):
    with pytest.raises(ShapeError, match=says):
        work()
