"""RMSNorm and LayerNorm, with the addition to the residual stream in front of them in one pass.

Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; Ba et al. 2016, arXiv:1607.06450, eq. 4.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from megalite.errors import ShapeError
from megalite.ops.backends import kernels
from megalite.ops.dropout import Drops, dropout_reference
from megalite.ops.precision import wide


@dataclass(frozen=True)
class NormOptions:
    """Which norm.

    Attributes:
        centred: LayerNorm; else RMSNorm.
        eps: added to the variance or mean square, in units of x^2.
        weight_offset: added to the weight.
    """

    centred: bool = False
    eps: float = 1e-5
    weight_offset: float = 0.0


@dataclass(frozen=True)
class Update:
    """What is added to the residual stream.

    Attributes:
        value: of the stream's shape and dtype.
        residual_scale: the stream is multiplied by it first.
        drops: dropout of ``value``; None is none.
    """

    value: Tensor
    residual_scale: float = 1.0
    drops: Drops | None = None


def norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    options: NormOptions = NormOptions(),
) -> Tensor:
    """Normalise the last dimension of ``x``, scale it, and shift it where there is a bias.

    Args:
        x: [..., D], bf16, fp16, fp32 or fp64.
        weight: [D].
        bias: [D] or None.
        options: which norm.

    Returns:
        [..., D], dtype of ``x``; at least fp32 inside.

    Raises:
        ShapeError: ``weight`` or ``bias`` is not [D].
    """
    return add_norm(x, None, weight, bias, options)[1]


def add_norm(
    x: Tensor,
    update: Update | None,
    weight: Tensor,
    bias: Tensor | None = None,
    options: NormOptions = NormOptions(),
) -> tuple[Tensor, Tensor]:
    """Add to the residual stream and normalise the sum.

    What else reads the stream should read the sum that comes back, also without an update: its
    gradient is then added in the same pass.

    Args:
        x: [..., D], bf16, fp16, fp32 or fp64; [B, S, D] with dropout.
        update: what is added; None is nothing.
        weight: [D].
        bias: [D] or None.
        options: which norm.

    Returns:
        ``residual_scale x + dropped value``, and its norm: [..., D], dtype of ``x``; at least fp32
        inside.

    Raises:
        ShapeError: shapes don't fit.
    """
    _check(x, update, weight, bias)
    dtype = torch.promote_types(x.dtype, weight.dtype)
    if dtype != x.dtype:  # a weight that is wider than the stream stays so
        moved = update and replace(update, value=update.value.to(dtype))
        both = add_norm(x.to(dtype), moved, weight, bias, options)
        return both[0].to(x.dtype), both[1].to(x.dtype)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if kernels(x) is None:
        return _reference(x, update, weight, bias, options)
    value = update.value if update else None
    if not torch.is_grad_enabled():
        return _kernel(x, value, weight, bias, (options, update))[:2]
    total, normal = _AddNorm.apply(x, value, weight, bias, (options, update))
    return total, normal


def _check(x: Tensor, update: Update | None, weight: Tensor, bias: Tensor | None) -> None:
    for name, each in (("weight", weight), ("bias", bias)):
        if each is not None and each.shape != x.shape[-1:]:
            raise ShapeError(
                f"norm: {name} must be {list(x.shape[-1:])} like x's last dimension, "
                f"came {list(each.shape)}"
            )
    if update is None:
        return
    if update.value.shape != x.shape or update.value.dtype != x.dtype:
        raise ShapeError(
            f"norm: the update must be {x.dtype} {list(x.shape)} like x, came "
            f"{update.value.dtype} {list(update.value.shape)}"
        )
    samples = None if update.drops is None else update.drops.sample_ids
    if samples is not None and (x.dim() != 3 or samples.shape != x.shape[:1]):
        raise ShapeError(
            f"norm: x must be [B, S, D] and sample_ids [B] for dropout, came {list(x.shape)} and "
            f"{list(samples.shape)}"
        )


def _reference(
    x: Tensor, update: Update | None, weight: Tensor, bias: Tensor | None, options: NormOptions
) -> tuple[Tensor, Tensor]:
    """Both in plain PyTorch."""
    if update is not None:
        value, drops = update.value, update.drops
        if drops is not None:
            value = dropout_reference(value, drops)
        x = (x if update.residual_scale == 1.0 else x * update.residual_scale) + value
    scale, shift = wide(weight) + options.weight_offset, None if bias is None else wide(bias)
    if options.centred:
        normal = functional.layer_norm(wide(x), scale.shape, scale, shift, options.eps)
    else:
        normal = functional.rms_norm(wide(x), scale.shape, scale, options.eps)
        normal = normal if shift is None else normal + shift
    return x, normal.to(x.dtype)


# p, seed, sample ids, position offset: of the operators' dropout.
_NO_DROPS = 0.0, 0, None, 0


def _how(options: NormOptions, update: Update | None) -> tuple[Any, ...]:
    """What the operators and their gradient take besides tensors."""
    if update is None:
        return options.weight_offset, 1.0, *_NO_DROPS
    dropped = _NO_DROPS if update.drops is None else update.drops.row_arguments
    return options.weight_offset, update.residual_scale, *dropped


def _kernel(
    x: Tensor,
    value: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    options: tuple[NormOptions, Update | None],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum, its norm, and the statistics that the gradient needs."""
    which, how = options[0], _how(*options)
    total, normal, mean, inverse = kernels(x).add_norm(
        x, value, weight, bias, which.eps, which.centred, *how
    )
    return x if value is None else total, normal, mean, inverse


class _AddNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        x, value, weight, bias, options = inputs
        ctx.set_materialize_grads(False)
        ctx.ops, ctx.how = kernels(x), _how(*options)
        total, normal, mean, inverse = _kernel(x, value, weight, bias, options)
        ctx.save_for_backward(total, weight, mean, inverse)
        ctx.has_update, ctx.has_bias = value is not None, bias is not None
        return total, normal

    @staticmethod
    def backward(ctx: Any, dsum: Tensor | None, dout: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight, mean, inverse = ctx.saved_tensors
        if dout is None:
            dout = torch.zeros_like(total)
        dx, dupdate, dweight, dbias = ctx.ops.add_norm_backward(
            dout, dsum, total, weight, mean, inverse, *ctx.how, ctx.has_update, ctx.has_bias
        )
        if ctx.has_update and dupdate.numel() == 0:
            dupdate = dx
        return (
            dx,
            dupdate if ctx.has_update else None,
            dweight,
            dbias if ctx.has_bias else None,
            None,
        )
