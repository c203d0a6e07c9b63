"""Quantised matrices on every backend, against bitsandbytes' published tables and rules."""

import pytest
import torch

from megalite.errors import ShapeError
from megalite.ops.quantised import Quantised, dequantised, quantised, quantised_linear
from tests.kernels.backends import backend, device_of, on_every_row_backend

TYPES = [torch.float32, torch.bfloat16, torch.float16]
FORMS = ["nf4", "int8"]
# github.com/bitsandbytes-foundation/bitsandbytes, csrc/kernels.cu: the borders of dQuantizeNF4, of
# which an element exceeds as many as its code is, and the values of dDequantizeNF4.
BORDERS = """-0.8480964004993439 -0.6106329262256622 -0.4599952697753906 -0.33967943489551544
 -0.23460740596055984 -0.13791173323988914 -0.045525018125772476 0.03979014977812767
 0.1202552504837513 0.2035212516784668 0.2920137718319893 0.3893125355243683 0.5016634166240692
 0.6427869200706482 0.8614784181118011"""
VALUES = """-1.0 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635
 -0.18477343022823334 -0.09105003625154495 0.0 0.07958029955625534 0.16093020141124725
 0.24611230194568634 0.33791524171829224 0.44070982933044434 0.5626170039176941
 0.7229568362236023 1.0"""


def matrix(rows: int, width: int) -> torch.Tensor:
    """With a block of zeros, and one in which each border and its neighbours stand."""
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    x[0, :64] = 0
    borders = torch.tensor([float(word) for word in BORDERS.split()])
    around = torch.cat([borders, *(borders.nextafter(torch.tensor(end)) for end in (-2.0, 2.0))])
    x[-1, : min(width, 45)] = around[:width]
    x[-1, 0] = 1.0
    return x


def nf4_of_bitsandbytes(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Packed codes, largest sizes and values of a tensor in blocks of 64 of all of its elements."""
    borders, values = (torch.tensor([float(w) for w in t.split()]) for t in (BORDERS, VALUES))
    blocks = x.reshape(-1, 64)
    largest = blocks.abs().max(1).values
    scaled = blocks * torch.where(largest > 0, 1.0 / largest, 0.0)[:, None]
    codes = (scaled[:, :, None] > borders).sum(2)
    packed = (codes.flatten()[::2] * 16 + codes.flatten()[1::2]).to(torch.uint8)
    return packed, largest, (values[codes] * largest[:, None]).view(x.shape)


@pytest.mark.parametrize("width", [64, 192, 1024])
def test_nf4_has_the_codes_scales_and_values_of_bitsandbytes(width):
    x = matrix(9, width)
    codes, largest, values = nf4_of_bitsandbytes(x)
    found = quantised(x, "nf4")
    assert torch.equal(found.codes.flatten(), codes)
    assert torch.equal(found.scales.flatten(), largest)
    with backend("reference"):
        assert torch.equal(dequantised(found, torch.float32), values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 5, 63, 65, 100, 256])
def test_an_element_has_the_nearest_level_of_its_block(form, width):
    x = matrix(5, width)
    with backend("reference"):
        found = dequantised(quantised(x, form), torch.float32)
    levels = torch.tensor([float(w) for w in VALUES.split()])
    if form == "int8":
        levels = torch.arange(-127, 128) / 127
    for first in range(0, width, 64):
        block, own = x[:, first : first + 64], found[:, first : first + 64]
        near = block.abs().amax(1)[:, None, None] * levels
        least = (block[..., None] - near).abs().amin(-1)
        assert torch.allclose((own - block).abs(), least, rtol=1e-4, atol=1e-6)


@on_every_row_backend
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("width", [1, 5, 63, 64, 65, 100, 104, 264])
def test_every_backend_has_the_references_bits(name, form, width):
    one = quantised(matrix(7, width), form)
    there = Quantised(one.codes.to(device_of(name)), one.scales.to(device_of(name)), width)
    for dtype in TYPES:
        with backend("reference"):
            wanted = dequantised(one, dtype)
        with backend(name):
            assert torch.equal(dequantised(there, dtype).cpu(), wanted)
            assert torch.equal(dequantised(there.rows(2, 5), dtype).cpu(), wanted[2:5])
            assert dequantised(there.rows(3, 3), dtype).shape == (0, width)


@on_every_row_backend
@pytest.mark.parametrize("form", FORMS)
def test_products_and_gradients_are_those_of_the_whole_matrix(name, form):
    device = device_of(name)
    one = quantised(matrix(11, 72).to(device), form)
    x = torch.randn(2, 3, 72, device=device, requires_grad=True)
    bias = torch.randn(11, device=device)
    with backend(name):
        whole = dequantised(one, torch.float32)
        y = quantised_linear(x, one, bias)
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
    assert torch.equal(y, x @ whole.t() + bias)
    assert torch.equal(gradient, 2 * y @ whole)


@pytest.mark.parametrize("form", FORMS)
def test_a_block_that_is_not_finite_gives_no_numbers_and_no_other_suffers(form):
    x = matrix(3, 130)
    x[1, 70] = float("nan")
    x[2, 3] = float("inf")
    found = dequantised(quantised(x, form), torch.float32)
    lost = ~torch.isfinite(found)
    assert lost[1, 64:128].all() and lost.sum() == 128
    assert lost[2, :64].all()


@on_every_row_backend
def test_what_does_not_fit_is_refused(name):
    one = quantised(matrix(4, 66), "nf4")
    codes, scales = one.codes.to(device_of(name)), one.scales.to(device_of(name))
    with backend(name):
        for wrong in (
            Quantised(codes, scales, 64),
            Quantised(codes.int(), scales, 66),
            Quantised(codes, scales.double(), 66),
            Quantised(codes, scales[:3], 66),
        ):
            with pytest.raises(ShapeError, match=f"dequantised: of width {wrong.width}, codes"):
                dequantised(wrong, torch.float32)
        with pytest.raises(
            ShapeError, match="dtype must be fp32, bf16 or fp16, came torch.float64"
        ):
            dequantised(Quantised(codes, scales, 66), torch.float64)
