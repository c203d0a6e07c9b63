"""Products of matrices, by the faster of the libraries that PyTorch has for a processor.

PyTorch multiplies in fp32 by MKL, which computes with AVX2 on AMD's processors; oneDNN, by which it
multiplies in other formats, has AVX-512 there, and twice the rate.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from megalite import torch_private

LEAST = 1 << 21  # multiplications: below it what a call takes beside them decides
PIECE_ELEMENTS = 1 << 20  # of what is copied of a matrix, or added to one, at a time: 4 MiB,
PIECE_ROWS = 256  # but of no fewer rows, so that a product is at its rate


def takes_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether the product of x [..., K] with a matrix [N, K] is oneDNN's."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= LEAST
        and x.device.type == weight.device.type == "cpu"
        and type(weight) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and torch_private.has_faster_onednn()
    )


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias``, of which autograd knows nothing where oneDNN makes it.

    oneDNN copies an x that is turned: it gets one in pieces, so that little is held twice.

    Args:
        x: [M, K].
        weight: [N, K].
        bias: [N], or None.

    Returns:
        [M, N].
    """
    if not takes_onednn(x, weight):
        return functional.linear(x, weight, bias)
    if x.is_contiguous():
        return torch_private.onednn_product(x, weight, bias)
    y = x.new_empty(x.shape[0], weight.shape[0])
    for part, rows in _pieces(y, x):
        part.copy_(torch_private.onednn_product(rows, weight, bias))
    return y


def add_product(total: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Total [M, N] + ``x weight^T``, over total; the rest as :func:`product`."""
    if not takes_onednn(x, weight):
        return total.addmm_(x, weight.t())
    for part, rows in _pieces(total, x):
        part += torch_private.onednn_product(rows, weight, None)
    return total


def _pieces(y: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of both at a time."""
    rows = max(PIECE_ROWS, PIECE_ELEMENTS // max(y.shape[1], x.shape[1]))
    return zip(y.split(rows), x.split(rows), strict=True)


def learned_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """:func:`product` of rows [..., K] with a matrix [N, K], [..., N], with its gradients."""
    if not takes_onednn(x, weight):
        return functional.linear(x, weight, bias)
    y: Tensor = _Product.apply(x, weight, bias)
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        rows = product(x.reshape(-1, x.shape[-1]), weight, bias)
        return rows.view(*x.shape[:-1], weight.shape[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows, needs = dy.reshape(-1, dy.shape[-1]), ctx.needs_input_grad
        dx = product(rows, weight.t()).view(x.shape) if needs[0] else None
        inputs = x.reshape(-1, x.shape[-1])
        dweight = product(rows.t(), inputs.t()) if needs[1] else None
        return dx, dweight, rows.sum(0) if needs[2] else None
