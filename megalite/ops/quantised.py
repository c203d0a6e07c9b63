"""Matrices of 4 or 8 bits an element, and products with them; they learn nothing.

A row is cut into blocks of 64 elements, the last one perhaps shorter. A block has one scale, and an
element is a level times it: one of NF4's 16 levels, with the largest size of the block as scale; or
of ``int8`` a whole number in [-127, 127], with a 127th of it. Where rows are whole blocks, NF4 has
the codes and scales that bitsandbytes has without double quantisation.

Source: Dettmers et al. 2023, arXiv:2305.14314, section 3 and appendix E.
"""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from megalite.errors import ShapeError
from megalite.ops.backends import quantised_kernels
from megalite.ops.linear import linear

Format = Literal["int8", "nf4"]

BLOCK = 64  # elements of a row that share a scale
LEVELS = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
NEAREST = tuple((low + high) / 2 for low, high in zip(LEVELS, LEVELS[1:], strict=False))
LARGEST = 127  # of int8's numbers


class Quantised(NamedTuple):
    """A matrix [O, I].

    Attributes:
        codes: uint8 [O, ceil(I/2)], two codes of NF4 in a byte, the first in its upper half; or
            int8 [O, I].
        scales: fp32 [O, ceil(I/64)].
        width: I.
    """

    codes: Tensor
    scales: Tensor
    width: int

    def rows(self, first: int, last: int) -> "Quantised":
        """The matrix of rows [first, last)."""
        return Quantised(self.codes[first:last], self.scales[first:last], self.width)


def row_sizes(form: Format, width: int) -> tuple[int, int]:
    """Bytes of codes, and scales, of a row."""
    return (-(-width // 2) if form == "nf4" else width), -(-width // BLOCK)


@torch.no_grad()
def quantised(matrix: Tensor, form: Format) -> Quantised:
    """Quantise a matrix [O, I], each element to the nearest level.

    A block with an infinity or a NaN has no numbers afterwards: its scale is none.
    """
    rows, width = matrix.shape
    blocks = functional.pad(matrix.float(), (0, -width % BLOCK)).view(rows, -1, BLOCK)
    most = blocks.abs().amax(-1, keepdim=True)
    scale = most if form == "nf4" else most / LARGEST
    # bitsandbytes multiplies by the inverse; 0 / 0 is the level 0.
    relative = blocks * (1.0 / scale) if form == "nf4" else blocks / scale
    relative = relative.nan_to_num(0.0).flatten(1)[:, :width]
    scales = scale.squeeze(-1)
    if form == "int8":
        numbers = relative.round().clamp(-LARGEST, LARGEST)
        return Quantised(numbers.to(torch.int8), scales, width)
    borders = torch.tensor(NEAREST, device=matrix.device)
    codes = torch.bucketize(relative.contiguous(), borders, out_int32=True).to(torch.uint8)
    pairs = functional.pad(codes, (0, width % 2)).view(rows, -1, 2)
    return Quantised(pairs[..., 0] << 4 | pairs[..., 1], scales, width)


def dequantised(matrix: Quantised, dtype: torch.dtype) -> Tensor:
    """The matrix [O, I] in fp32, bf16 or fp16: a level times its scale, in fp32, rounded once.

    Raises:
        ShapeError: its tensors don't fit each other, or their dtypes or ``dtype`` are others.
    """
    _check(matrix, dtype)
    ops = quantised_kernels(matrix.scales)
    if ops is not None:
        found: Tensor = ops.dequantised(*matrix, dtype)
        return found
    codes, scales, width = matrix
    if codes.dtype == torch.uint8:
        pairs = torch.stack((codes >> 4, codes & 15), -1).flatten(1)[:, :width]
        levels = torch.tensor(LEVELS, device=codes.device)[pairs.int()]
    else:
        levels = codes.float()
    return (levels * scales.repeat_interleave(BLOCK, 1)[:, :width]).to(dtype)


def _check(matrix: Quantised, dtype: torch.dtype) -> None:
    codes, scales, width = matrix
    form: Format = "nf4" if codes.dtype == torch.uint8 else "int8"
    size, blocks = row_sizes(form, width)
    fits = codes.dim() == 2 and codes.shape[1] == size and codes.dtype in (torch.uint8, torch.int8)
    if not fits or scales.dtype != torch.float32 or scales.shape != (codes.shape[0], blocks):
        raise ShapeError(
            f"dequantised: of width {width}, codes must be uint8 [O, {row_sizes('nf4', width)[0]}] "
            f"(NF4) or int8 [O, {width}] and scales float32 [O, {blocks}], came {codes.dtype} "
            f"{list(codes.shape)} and {scales.dtype} {list(scales.shape)}"
        )
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ShapeError(f"dequantised: dtype must be fp32, bf16 or fp16, came {dtype}")


def quantised_linear(x: Tensor, matrix: Quantised, bias: Tensor | None = None) -> Tensor:
    """Multiply rows [..., I] with a quantised matrix: [..., O].

    The matrix is made whole in the dtype of ``x`` for the product, and again for the gradient of
    ``x``; between them it is not kept.
    """
    y: Tensor = _Product.apply(x, *matrix)
    return y if bias is None else y + bias


Weight = Tensor | Quantised  # [O, I]


def multiply(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """Multiply rows [..., I] with a matrix [O, I], quantised or not: [..., O]."""
    if isinstance(weight, Quantised):
        return quantised_linear(x, weight, bias)
    return linear(x, weight, bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, width: int) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.width = width
        return linear(x, dequantised(Quantised(codes, scales, width), x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        codes, scales = ctx.saved_tensors
        weight = dequantised(Quantised(codes, scales, ctx.width), dy.dtype)
        return linear(dy, weight.t()), None, None, None
