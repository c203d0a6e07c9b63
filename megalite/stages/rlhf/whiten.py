"""Moments over the response tokens of the whole global batch, and whitening by them."""

import torch
from torch import Tensor

from megalite.distributed.mesh import Axis
from megalite.distributed.sums import all_reduce_sum

EPSILON = 1e-8
ALONE = Axis("dp")


def moments(values: Tensor, mask: Tensor, axis: Axis = ALONE) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the masked values of all ranks.

    Args:
        values: [B, S] fp32.
        mask: [B, S] bool.
        axis: the data-parallel ranks that hold the rest of the batch.

    Returns:
        Two fp64 scalars, the same on every rank; 0 where nothing is masked in.

    Comm: two all-reduces of 16 bytes.
    """
    kept = values.double() * mask
    count, total = all_reduce_sum(torch.stack((mask.sum().double(), kept.sum())), axis)
    count = count.clamp(min=1)
    mean = total / count
    squares = (((values.double() - mean) * mask) ** 2).sum()
    return mean, all_reduce_sum(squares, axis) / count


def whiten(values: Tensor, mask: Tensor, axis: Axis = ALONE, shift_mean: bool = True) -> Tensor:
    """Scale values to unit variance over the global batch, and to zero mean if ``shift_mean``.

    Args:
        values: [B, S] fp32.
        mask: [B, S] bool; values outside become 0.
        axis: the data-parallel ranks that hold the rest of the batch.
        shift_mean: False keeps the mean, as is done for rewards.

    Returns:
        [B, S], dtype of ``values``.
    """
    mean, variance = moments(values, mask, axis)
    white = (values.double() - mean) * torch.rsqrt(variance + EPSILON)
    if not shift_mean:
        white = white + mean
    return (white * mask).to(values.dtype)
