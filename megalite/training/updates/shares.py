"""Statistics of a parameter whose pieces are on several processes: where they are, how they add."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import all_reduce_sum
from megalite.layers.shards import local_part

Piece = tuple[Tensor, frozenset[str]]  # a process's part of a sum, and the axes it is summed over


def cut_axes(parameter: Tensor, dims: Iterable[int]) -> frozenset[str]:
    """The axes of the mesh over which some dimensions of a parameter are cut."""
    if not isinstance(parameter, DTensor):
        return frozenset()
    names, wanted = parameter.device_mesh.mesh_dim_names or (), set(dims)
    return frozenset(
        name
        for name, placement in zip(names, parameter.placements, strict=True)
        if not placement.is_replicate() and _dim(placement) in wanted
    )


def _dim(placement: Placement) -> int:
    """The dimension that a shard, FSDP's strided shard of a tp shard included, cuts."""
    return int(placement.dim)  # type: ignore[attr-defined]


def statistic_of(parameter: Tensor, dims: range) -> Tensor:
    """Zeros with some dimensions of a parameter, cut as they are and copied along the others.

    Args:
        parameter: whose statistic it will be.
        dims: that stay; those in front of it or behind it are gone.
    """
    shape = tuple(parameter.shape[dim] for dim in dims)
    local = local_part(parameter)
    zeros = local.new_zeros([local.shape[dim] for dim in dims])
    if not isinstance(parameter, DTensor):
        return zeros
    placements = [
        _moved(placement, dims)
        if not placement.is_replicate() and _dim(placement) in dims
        else Replicate()
        for placement in parameter.placements
    ]
    stride = tuple(math.prod(shape[dim + 1 :]) for dim in range(len(shape)))
    return DTensor.from_local(
        zeros,
        parameter.device_mesh,
        placements,
        run_check=False,
        shape=torch.Size(shape),
        stride=stride,
    )


def _moved(placement: Placement, dims: range) -> Placement:
    """A shard of a dimension, counted from the first that stays."""
    if dims[0] == 0:
        return placement
    assert isinstance(placement, Shard)  # FSDP cuts a tp shard again along dimension 0 alone
    return Shard(placement.dim - dims[0])


@torch.no_grad()
def sum_pieces(pieces: Sequence[Piece], mesh: Mesh) -> list[Tensor]:
    """Sum parts of sums over the processes that have the others; fp32.

    Args:
        pieces: the same ones in the same order on all processes of tp and of shard.
        mesh: the mesh.

    Comm: at most one all-reduce over shard and one over tp, of all that is cut there.
    """
    sums = [tensor for tensor, _ in pieces]
    for axis in (mesh.shard, mesh.tp):
        places = [place for place, (_, axes) in enumerate(pieces) if axis.name in axes]
        if axis.group is None or not places:
            continue
        flat = torch.cat([sums[place].reshape(-1) for place in places])
        parts = all_reduce_sum(flat, axis).split([sums[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            sums[place] = part.view_as(sums[place])
    return sums
