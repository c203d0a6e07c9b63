"""Sums over processes without autograd: losses, metrics, counts and flags."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.mesh import Axis


def all_reduce_sum(x: Tensor, axis: Axis) -> Tensor:
    """The sum over ``axis``, without autograd; ``x`` itself is left as it is.

    Comm: all-reduce of ``x`` over ``axis``.
    """
    if axis.group is None:
        return x
    total = x.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=axis.group)
    return total


def sum_count(count: float, axis: Axis, device: torch.device) -> float:
    """Sum a number over ``axis``, in fp64.

    Comm: all-reduce of 8 bytes over ``axis``; a host sync on a GPU.
    """
    return float(all_reduce_sum(torch.tensor(count, dtype=torch.float64, device=device), axis))


def sum_metrics(sums: Mapping[str, Tensor], axis: Axis) -> dict[str, float]:
    """Sum scalars by name over ``axis``, in fp64; the names are the same on all processes.

    Comm: one all-reduce over ``axis``; a host sync on a GPU.
    """
    names = sorted(sums)
    values = torch.stack([sums[name].double() for name in names])
    return dict(zip(names, all_reduce_sum(values, axis).tolist(), strict=True))


def are_true_anywhere(flags: Sequence[bool], axis: Axis, device: torch.device) -> list[bool]:
    """Whether any process of ``axis`` says so, of each flag.

    Comm: all-reduce of 4 bytes a flag over ``axis``; a host sync on a GPU.
    """
    given = torch.tensor([float(flag) for flag in flags], device=device)
    return [count > 0 for count in all_reduce_sum(given, axis).tolist()]
