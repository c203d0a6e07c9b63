"""Moments over the response tokens of the whole global batch, and whitening by them."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

EPSILON = 1e-8


def global_sum(values: Tensor, group: ProcessGroup | None) -> Tensor:
    """Add ``values`` over the ranks of ``group``; None is this process alone.

    Comm: all-reduce of ``values`` over ``group``, no gradient.
    """
    if group is not None:
        values = values.clone()
        dist.all_reduce(values, group=group)
    return values


def moments(
    values: Tensor, mask: Tensor, group: ProcessGroup | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the masked values of all ranks.

    Args:
        values: [B, S] fp32.
        mask: [B, S] bool.
        group: the data-parallel ranks that hold the rest of the batch.

    Returns:
        Two fp64 scalars, the same on every rank; 0 where nothing is masked in.

    Comm: two all-reduces of 16 bytes.
    """
    kept = values.double() * mask
    count, total = global_sum(torch.stack((mask.sum().double(), kept.sum())), group)
    count = count.clamp(min=1)
    mean = total / count
    squares = (((values.double() - mean) * mask) ** 2).sum()
    return mean, global_sum(squares, group) / count


def whiten(
    values: Tensor, mask: Tensor, group: ProcessGroup | None = None, shift_mean: bool = True
) -> Tensor:
    """Scale values to unit variance over the global batch, and to zero mean if ``shift_mean``.

    Args:
        values: [B, S] fp32.
        mask: [B, S] bool; values outside become 0.
        group: the data-parallel ranks that hold the rest of the batch.
        shift_mean: False keeps the mean, as is done for rewards.

    Returns:
        [B, S], dtype of ``values``.
    """
    mean, variance = moments(values, mask, group)
    white = (values.double() - mean) * torch.rsqrt(variance + EPSILON)
    if not shift_mean:
        white = white + mean
    return (white * mask).to(values.dtype)
