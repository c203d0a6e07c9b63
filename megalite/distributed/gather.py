"""What each process of an axis has, given to all of them."""

from typing import TypeVar

import torch.distributed as dist

from megalite.distributed.mesh import Axis

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
