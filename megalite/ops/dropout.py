"""Dropout of hidden states whose pattern depends on what is dropped, never on where it runs."""

from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.backends import kernels
from megalite.ops.random import element_keep

# p, seed, sample ids, position and feature offset: see :func:`dropout`.
_Arguments = tuple[float, int, Tensor, int, int]


def dropout(
    x: Tensor,
    p: float,
    seed: int,
    sample_ids: Tensor,
    position_offset: int = 0,
    feature_offset: int = 0,
) -> Tensor:
    """Zero elements with probability ``p`` and scale the others by 1 / (1 - p).

    Args:
        x: [B, S, D].
        p: probability of dropping.
        seed: key of the counter-based generator: of the step, layer and site.
        sample_ids: int64 [B].
        position_offset: number of the first row in its sample.
        feature_offset: number of the first feature.

    Returns:
        [B, S, D], dtype of ``x``.

    Raises:
        ShapeError: ``x`` is not [B, S, D], or ``sample_ids`` is not [B].
    """
    if p == 0.0:
        return x
    if x.dim() != 3 or tuple(sample_ids.shape) != (x.shape[0],):
        raise ShapeError(
            f"dropout: x must be [B, S, D] and sample_ids [B], came {list(x.shape)} and "
            f"{list(sample_ids.shape)}"
        )
    return _Dropout.apply(x, (p, seed, sample_ids, position_offset, feature_offset))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, arguments: _Arguments) -> Tensor:
        ctx.arguments, ctx.ops = arguments, kernels(x)
        return _drop(ctx.ops, x, arguments)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _drop(ctx.ops, gradient, ctx.arguments), None


def _drop(ops: Any, x: Tensor, arguments: _Arguments) -> Tensor:
    if ops is None:
        return dropout_reference(x, *arguments)
    dropped: Tensor = ops.dropout(x, *arguments)
    return dropped


def dropout_reference(
    x: Tensor, p: float, seed: int, sample_ids: Tensor, position_offset: int, feature_offset: int
) -> Tensor:
    """Dropout in plain PyTorch."""
    positions = position_offset + torch.arange(x.shape[1], device=x.device)
    features = feature_offset + torch.arange(x.shape[2], device=x.device)
    keep = element_keep(seed, p, sample_ids, positions, features)
    return x * (keep / (1.0 - p)).to(x.dtype)
