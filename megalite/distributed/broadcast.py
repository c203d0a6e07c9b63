"""What the last process of an axis has, given to all of them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.collectives import Pending
from megalite.distributed.mesh import Axis, Mesh


def share_from_last(
    result: Tensor | tuple[Tensor, ...] | None, axis: Axis, device: torch.device
) -> Tensor | tuple[Tensor, ...]:
    """Give every process of ``axis`` the last one's tensor or tuple of tensors.

    Comm: broadcast of shapes and of the tensors over ``axis``.

    Args:
        result: of the last process; others' is not read.
        axis: with a group.
        device: of the tensors that are made here.
    """
    source = axis.global_rank(axis.size - 1)
    is_last = axis.rank == axis.size - 1
    tensors: list[Tensor] = []
    metas: list[Any] = [None]
    if is_last and result is not None:
        tensors = list(result) if isinstance(result, tuple) else [result]
        metas = [(isinstance(result, tuple), [(t.shape, t.dtype) for t in tensors])]
    dist.broadcast_object_list(metas, src=source, group=axis.group)
    is_tuple, shapes = metas[0]
    if not is_last:
        tensors = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in shapes]
    tensors = [tensor.contiguous() for tensor in tensors]
    for tensor in tensors:
        dist.broadcast(tensor, src=source, group=axis.group)
    return tuple(tensors) if is_tuple else tensors[0]


def start_share_from_last(result: Tensor | None, form: Tensor, mesh: Mesh) -> Pending:
    """Give all processes along pp the last one's tensor, whose form they know; don't wait.

    Comm: broadcast of the tensor over pp.

    Args:
        result: of the last process; others' is not read.
        form: meta tensor of its shape and dtype.
        mesh: with a pipeline.
    """
    axis = mesh.pp
    if axis.rank == axis.size - 1 and result is not None:
        tensor = result.to(form.dtype).contiguous()
    else:
        tensor = torch.empty_like(form, device=mesh.device)
    source = axis.global_rank(axis.size - 1)
    work = dist.broadcast(tensor, src=source, group=axis.group, async_op=True)
    return Pending(work, lambda: tensor)


def share_scalars_from_last(
    scalars: dict[str, Tensor], names: tuple[str, ...] | None, axis: Axis, device: torch.device
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Give every process of ``axis`` the last one's scalars by name, in fp32, and the names.

    Comm: broadcast of the scalars over ``axis``, and before that of the names, for which the host
    waits, where they aren't known.

    Args:
        scalars: of the last process; others' are not read.
        names: of the scalars, known on all processes or on none.
        axis: with a group.
        device: of the scalars.
    """
    source = axis.global_rank(axis.size - 1)
    if names is None:
        told = [tuple(scalars)]
        dist.broadcast_object_list(told, src=source, group=axis.group)
        (names,) = told
    values = torch.zeros(len(names), device=device)
    if axis.rank == axis.size - 1:
        values = torch.stack([scalars[name].float() for name in names])
    dist.broadcast(values, src=source, group=axis.group)
    return dict(zip(names, values.unbind(), strict=True)), names
