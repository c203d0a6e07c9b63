"""RMSNorm with its gradient by hand: PyTorch's own is a chain of operations on a CPU.

Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
"""

from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.precision import wide


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Normalise the last dimension of ``x`` and scale it.

    Args:
        x: [..., D], bf16, fp16, fp32 or fp64.
        weight: [D].
        eps: added to the mean square, in units of x^2.

    Returns:
        [..., D], dtype of ``x``; at least fp32 inside.

    Raises:
        ShapeError: ``weight`` is not [D].
    """
    if weight.shape != x.shape[-1:]:
        raise ShapeError(
            f"rms_norm: weight must be [{x.shape[-1]}] like x's last dimension, "
            f"came {list(weight.shape)}"
        )
    return _RmsNorm.apply(x, weight, eps)


class _RmsNorm(torch.autograd.Function):
    """With n = x r and r = 1 / sqrt(mean x^2 + eps): y = w n, dx = r (w dy - n mean(w dy n))."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        square = torch.linalg.vector_norm(wide(x), dim=-1, keepdim=True).square_()
        inverse = square.div_(x.shape[-1]).add_(eps).rsqrt_()  # r, [..., 1]
        ctx.save_for_backward(x, weight, inverse)
        return (wide(x) * inverse).mul_(wide(weight)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        gradient, scale = wide(gradient), wide(weight)
        normal = wide(x) * inverse
        product = gradient * normal
        rows = product.flatten(0, -2) if product.dim() > 1 else product[None]
        weight_gradient = torch.mv(rows.t(), rows.new_ones(rows.shape[0]))
        mean = (product @ scale).div_(x.shape[-1])[..., None]
        out = torch.mul(gradient, scale, out=product)
        out = out.addcmul_(normal, mean, value=-1.0).mul_(inverse)
        return out.to(x.dtype), weight_gradient.to(weight.dtype), None
