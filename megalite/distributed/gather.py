"""What each process of an axis has, given to all of them."""

from typing import TypeVar

import torch
import torch.distributed as dist

from megalite.distributed.mesh import Axis
from megalite.distributed.sums import sum_count

Own = TypeVar("Own")


def gather_objects(own: Own, axis: Axis) -> list[Own]:
    """What every process of ``axis`` gives, in the order of their ranks.

    Args:
        own: anything that can be pickled; its tensors on the CPU.
        axis: the processes.

    Comm: all-gather of the pickled objects over ``axis``.
    """
    if axis.group is None:
        return [own]
    found: list[Own] = [own] * axis.size
    dist.all_gather_object(found, own, group=axis.group)
    return found


def told_by_any(own: Own | None, axis: Axis, device: torch.device) -> list[Own]:
    """What processes of ``axis`` have to tell, in the order of their ranks; mostly nothing.

    Args:
        own: anything that can be pickled, or None.
        axis: the processes.
        device: that communicates over it.

    Comm: all-reduce of 8 bytes over ``axis``; where one has to tell something, an all-gather too.
    """
    if not sum_count(float(own is not None), axis, device):
        return []
    return [told for told in gather_objects(own, axis) if told is not None]
