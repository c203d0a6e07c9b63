"""A module whose parameters know how they start and how they are split over tp.

A parameter is a DTensor over the mesh's tp axis where that has more than one process, else a plain
one; compute happens on local tensors. Sizes that don't divide are cut unevenly, as DTensor's
``Shard`` does, so a parameter has the same whole shape in every layout.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard

from megalite.distributed.collectives import copy_to, shard_bounds
from megalite.distributed.mesh import Mesh
from megalite.layers.shards import local_part


@dataclass(frozen=True)
class Initial:
    """Initial values of a parameter: normal with ``std`` around 0, or ``value`` where std is 0."""

    std: float = 0.0
    value: float = 0.0


class Layer(nn.Module):
    """A module that says how each of its parameters starts and is placed."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh
        self.initial: dict[str, Initial] = {}
        self.rows: dict[str, int] = {}

    def add(
        self,
        name: str,
        shape: tuple[int, ...],
        initial: Initial,
        shard: int | None = None,
        rows: int = 0,
    ) -> None:
        """Declare a parameter.

        Args:
            name: its attribute.
            shape: of the whole parameter.
            initial: its first values.
            shard: the dimension that is split over tp; None for a copy on each process.
            rows: leading dimensions that number the rows of a matrix, its outputs; the others
                number its columns. 0: it is a vector, such as a bias [N, H].
        """
        self.initial[name], self.rows[name] = initial, rows
        tp = self.mesh.tp
        if tp.size == 1:
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            return
        assert self.mesh.device_mesh is not None
        local = list(shape)
        if shard is not None:
            first, last = shard_bounds(shape[shard], tp)
            local[shard] = last - first
        stride = tuple(math.prod(shape[d + 1 :]) for d in range(len(shape)))
        whole = DTensor.from_local(
            torch.empty(local),
            self.mesh.device_mesh["tp"],
            [Replicate() if shard is None else Shard(shard)],
            run_check=False,
            shape=torch.Size(shape),
            stride=stride,
        )
        self.register_parameter(name, nn.Parameter(whole))

    def local(self, name: str, partial: bool = False) -> Tensor:
        """The local tensor of a parameter, for compute.

        Args:
            name: its attribute.
            partial: each tp process sees only a part of what this copied parameter does, so its
                gradient is summed over tp in the backward pass.
        """
        tensor = local_part(getattr(self, name))
        return copy_to(tensor, self.mesh.tp) if partial else tensor
