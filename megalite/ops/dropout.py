"""Dropout of hidden states whose pattern depends on what is dropped, never on where it runs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.backends import kernels
from megalite.ops.random import element_keep
from megalite.seeds import fold, hash64


@dataclass(frozen=True)
class Drops:
    """Which elements of [B, S, D] are dropped.

    Attributes:
        p: probability of dropping.
        seed: key of the counter-based generator: of the step, layer and site.
        sample_ids: int64 [B].
        position_offset: number of the first row in its sample.
        feature_offset: number of the first feature.
    """

    p: float
    seed: int
    sample_ids: Tensor
    position_offset: int = 0
    feature_offset: int = 0

    @property
    def row_arguments(self) -> tuple[float, int, Tensor, int]:
        """What operators on whole rows take: all but the feature's offset."""
        return self.p, self.seed, self.sample_ids, self.position_offset

    @property
    def arguments(self) -> tuple[float, int, Tensor, int, int]:
        """What the operator takes."""
        return *self.row_arguments, self.feature_offset


@dataclass(frozen=True)
class Dropout:
    """The dropout of one forward pass.

    Attributes:
        seed: of the step.
        sample_ids: int64 [B].
    """

    seed: int
    sample_ids: Tensor

    def site_seed(self, site: str) -> int:
        """The seed of one place in the model."""
        return fold(self.seed, hash64(site))


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
    return _Dropout.apply(x, Drops(p, seed, sample_ids, position_offset, feature_offset))


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, drops: Drops) -> Tensor:
        ctx.drops, ctx.ops = drops, kernels(x)
        return _drop(ctx.ops, x, drops)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _drop(ctx.ops, gradient, ctx.drops), None


def _drop(ops: Any, x: Tensor, drops: Drops) -> Tensor:
    if ops is None:
        return dropout_reference(x, drops)
    dropped: Tensor = ops.dropout(x, *drops.arguments)
    return dropped


def dropout_reference(x: Tensor, drops: Drops) -> Tensor:
    """Dropout in plain PyTorch."""
    positions = drops.position_offset + torch.arange(x.shape[1], device=x.device)
    features = drops.feature_offset + torch.arange(x.shape[2], device=x.device)
    keep = element_keep(drops.seed, drops.p, drops.sample_ids, positions, features)
    return x * (keep / (1.0 - drops.p)).to(x.dtype)
