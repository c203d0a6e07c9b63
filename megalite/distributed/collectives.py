"""Collectives that autograd knows: each says what it does forward and backward.

Names of Megatron-LM: f enters a region that is split over tp, g leaves it; under sequence
parallelism they become all-gather and reduce-scatter along the sequence (dimension 1).

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; Korthikanti et al. 2022, arXiv:2205.05198.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from megalite.distributed.mesh import Axis
from megalite.distributed.sums import all_reduce_sum

# Their names before PyTorch 2.13, which warns of them, are the second ones.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
reduce_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def shard_bounds(size: int, axis: Axis) -> tuple[int, int]:
    """[first, last) of ``size`` items that this process of ``axis`` has.

    As ``torch.chunk`` and DTensor's ``Shard`` cut them: ceil(size / axis.size) each, the last
    processes fewer, perhaps none.
    """
    each = -(-size // axis.size)
    return min(axis.rank * each, size), min((axis.rank + 1) * each, size)


@dataclass(frozen=True)
class Pending:
    """A collective under way.

    Attributes:
        work: to wait for.
        result: gives what it made, once it is done.
    """

    work: dist.Work
    result: Callable[[], Tensor]

    def wait(self) -> Tensor:
        """Wait (a GPU's stream does, not the host) and give the result."""
        self.work.wait()
        return self.result()


def start_all_reduce(x: Tensor, axis: Axis) -> Pending:
    """Sum ``x``, contiguous, over ``axis`` in place."""
    return Pending(dist.all_reduce(x, group=axis.group, async_op=True), lambda: x)


def start_gather(x: Tensor, axis: Axis, dim: int, size: int) -> Pending:
    """All-gather shards cut as :func:`shard_bounds`; ``size`` is the whole dimension."""
    each = -(-size // axis.size)
    padded = _pad(x, dim, each - x.shape[dim]).movedim(dim, 0).contiguous()
    whole = padded.new_empty(axis.size * each, *padded.shape[1:])
    work = all_gather_single(whole, padded, group=axis.group, async_op=True)
    return Pending(work, lambda: whole[:size].movedim(0, dim))


def start_reduce_scatter(x: Tensor, axis: Axis, dim: int) -> Pending:
    """Reduce-scatter into equal shards of ceil(size / axis.size), the last ones padded with 0."""
    each = -(-x.shape[dim] // axis.size)
    whole = _pad(x, dim, each * axis.size - x.shape[dim]).movedim(dim, 0).contiguous()
    part = whole.new_empty(each, *whole.shape[1:])
    work = reduce_scatter_single(part, whole, group=axis.group, async_op=True)
    return Pending(work, lambda: part.movedim(0, dim))


def gather_stacked(x: Tensor, axis: Axis) -> Tensor:
    """What each process of ``axis`` has, side by side in a new dimension 1; no autograd.

    Comm: all-gather of ``x`` over ``axis``.
    """
    parts = [x]
    if axis.group is not None:
        parts = [torch.empty_like(x) for _ in range(axis.size)]
        dist.all_gather(parts, x, group=axis.group)
    return torch.stack(parts, 1)


def _gather_parts(x: Tensor, axis: Axis, dim: int, size: int) -> Tensor:
    return start_gather(x, axis, dim, size).wait()


def _reduce_scatter_parts(x: Tensor, axis: Axis, dim: int) -> Tensor:
    return start_reduce_scatter(x, axis, dim).wait()


def _pad(x: Tensor, dim: int, count: int) -> Tensor:
    if count == 0:
        return x
    return functional.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, count])


class _Copy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return all_reduce_sum(gradient, ctx.axis), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return all_reduce_sum(x, axis)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, length: int) -> Tensor:
        ctx.axis = axis
        return _gather_parts(x, axis, 1, x.shape[1] * axis.size)[:, :length]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _reduce_scatter_parts(gradient, ctx.axis, 1), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis, ctx.length = axis, x.shape[1]
        return _reduce_scatter_parts(x, axis, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        whole = _gather_parts(gradient, ctx.axis, 1, gradient.shape[1] * ctx.axis.size)
        return whole[:, : ctx.length], None


class _GatherCopies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, size: int) -> Tensor:
        ctx.axis, ctx.dim, ctx.shape = axis, dim, x.shape
        return _gather_parts(x, axis, dim, size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        first, last = shard_bounds(gradient.shape[ctx.dim], ctx.axis)
        part = gradient.narrow(ctx.dim, first, last - first)
        return _pad(part, ctx.dim, ctx.shape[ctx.dim] - (last - first)), None, None, None


def copy_to(x: Tensor, axis: Axis) -> Tensor:
    """Use a replicated tensor in a region split over ``axis`` (Megatron's f).

    Identity forward, all-reduce backward.
    """
    return x if axis.group is None else _Copy.apply(x, axis)


def reduce_from(x: Tensor, axis: Axis) -> Tensor:
    """Sum the partial results of a region split over ``axis`` (Megatron's g).

    All-reduce forward, identity backward.
    """
    return x if axis.group is None else _Reduce.apply(x, axis)


def gather_sequence(x: Tensor, axis: Axis, length: int) -> Tensor:
    """All-gather [B, S/tp, D] to [B, S, D], ``length`` = S. Reduce-scatter backward."""
    return x if axis.group is None else _GatherSequence.apply(x, axis, length)


def scatter_sum_sequence(x: Tensor, axis: Axis) -> Tensor:
    """Reduce-scatter [B, S, D]{tp} to [B, ceil(S/tp), D]. All-gather backward.

    Rows past S, where S does not divide, are 0.
    """
    return x if axis.group is None else _ScatterSum.apply(x, axis)


def gather_copies(x: Tensor, axis: Axis, dim: int, size: int) -> Tensor:
    """All-gather shards along ``dim`` to ``size``, for uses that every process repeats alike.

    Backward takes this process's slice: the gradient is the same everywhere.
    """
    return x if axis.group is None else _GatherCopies.apply(x, axis, dim, size)
