"""Sums over processes without autograd: losses, metrics, counts and flags."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.mesh import Axis
from megalite.distributed.transfer import Reading

_FLAG, _FLAGS = 1 << 17, 3  # flags in a number


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


class Counts:
    """Numbers that the host knows, summed over processes while it goes on."""

    def __init__(self, own: Mapping[str, float], axis: Axis, device: torch.device) -> None:
        """Begin the sum.

        Comm: one all-reduce over ``axis``, not waited for on a GPU.

        Args:
            own: this process's numbers by name; the names are the same on all processes.
            axis: the processes.
            device: that communicates.
        """
        self._own, self._sums = dict(own), None
        if axis.group is not None:
            each = [torch.full((), v, dtype=torch.float64, device=device) for v in own.values()]
            self._sums = all_reduce_sum(torch.stack(each), axis)
            self._reading = Reading(tuple(own), self._sums)

    def share(self, name: str, whole: float = 1.0) -> float | Tensor:
        """``whole`` / (the sum of a number, or 1 where it is less): of one process a float.

        Over several it is a scalar of the device, fp32.
        """
        if self._sums is None:
            return whole / max(self._own[name], 1.0)
        place = list(self._own).index(name)
        return (whole / self._sums[place].clamp(min=1.0)).float()

    def numbers(self) -> dict[str, float]:
        """The sums by name; the host waits for them."""
        return self._own if self._sums is None else self._reading.numbers()


def sum_metrics(sums: Mapping[str, Tensor], axis: Axis) -> dict[str, float]:
    """Sum scalars by name over ``axis``, in fp64; the names are the same on all processes.

    Comm: one all-reduce over ``axis``; a host sync on a GPU.
    """
    names = sorted(sums)
    values = torch.stack([sums[name].double() for name in names])
    return dict(zip(names, all_reduce_sum(values, axis).tolist(), strict=True))


def ask_anywhere(
    flags: Sequence[bool], axis: Axis, device: torch.device
) -> Callable[[], list[bool]]:
    """Begin to ask whether any process of ``axis`` says so, of each flag.

    Three flags share a number, which fp64 has whole for fewer than ``_FLAG`` processes.

    Comm: all-reduce of 8 bytes for three flags over ``axis``; on a GPU the host waits when it calls
    what comes back.
    """
    groups = [flags[at : at + _FLAGS] for at in range(0, len(flags), _FLAGS)]
    packed = {
        str(n): float(sum(flag * _FLAG**place for place, flag in enumerate(group)))
        for n, group in enumerate(groups)
    }
    counts = Counts(packed, axis, device)

    def answer() -> list[bool]:
        return [
            int(total) // _FLAG**place % _FLAG > 0
            for total, group in zip(counts.numbers().values(), groups, strict=True)
            for place in range(len(group))
        ]

    return answer


def are_true_anywhere(flags: Sequence[bool], axis: Axis, device: torch.device) -> list[bool]:
    """Whether any process of ``axis`` says so, of each flag.

    Comm: as :func:`ask_anywhere`; a host sync on a GPU.
    """
    return ask_anywhere(flags, axis, device)()
