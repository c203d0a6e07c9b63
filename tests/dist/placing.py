"""Whole tensors put into layers that hold a part of them, in fp64."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Axis, Mesh, ParallelConfig, build_mesh
from megalite.layers.shards import gradient_of, local_part
from tests.dist.exact import even_shards, shards


@contextlib.contextmanager
def double() -> Iterator[None]:
    """Parameters that are made inside are fp64."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def mesh_of(launch: Launch, layout: dict[str, Any]) -> Mesh:
    """The mesh of a layout; none is a process alone without a group."""
    return build_mesh(launch, ParallelConfig(**layout), "cpu") if layout else Mesh.single()


def split_dim(parameter: Tensor) -> int | None:
    """The dimension of a parameter that is split over tp."""
    if not isinstance(parameter, DTensor) or parameter.placements[0].is_replicate():
        return None
    return parameter.placements[0].dim


def place(layer: nn.Module, values: Mapping[str, Tensor], tp: Axis) -> None:
    """Put this process's part of whole values into the parameters."""
    for name, parameter in layer.named_parameters():
        whole, dim = values[name], split_dim(parameter)
        part = whole if dim is None else shards(whole, dim, tp.size)[tp.rank]
        local_part(parameter.data).copy_(part)


def stream(x: Tensor, mesh: Mesh, fill: float) -> Tensor:
    """This process's rows of a residual stream, with ``fill`` where there are no more."""
    return even_shards(x, 1, mesh.tp.size, fill)[mesh.tp.rank] if mesh.sequence_parallel else x


def gradients(layer: nn.Module) -> dict[str, Tensor]:
    """What this process has of the gradients, of those parameters that have one."""
    named = layer.named_parameters()
    return {name: local_part(gradient_of(p)) for name, p in named if p.grad is not None}
