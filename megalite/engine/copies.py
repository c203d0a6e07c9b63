"""Which processes hold equal copies of a tensor, and whether the copies are equal bit for bit."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from megalite.distributed.mesh import Axis, Mesh
from megalite.distributed.sums import are_true_anywhere
from megalite.layers.shards import local_part

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def axes_of_copies(tensor: Tensor, mesh: Mesh) -> dict[str, Axis]:
    """The axes, but for pp, along which processes hold the same piece of a tensor."""
    axes = {"replicate": mesh.replicate, "shard": mesh.shard, "tp": mesh.tp}
    if isinstance(tensor, DTensor):
        names = tensor.device_mesh.mesh_dim_names or ()
        for axis, placement in zip(names, tensor.placements, strict=True):
            if not placement.is_replicate():  # Shard, or FSDP's strided shard of a tp shard
                axes.pop(axis, None)
    return axes


def bit_sum(tensor: Tensor) -> Tensor:
    """The sum of the bits of what this process holds, read as integers: int64 scalar.

    Any change of one element changes it, whatever the order of summation.
    """
    local = local_part(tensor).detach().contiguous()
    return local.view(-1).view(INTEGERS[local.element_size()]).sum(dtype=torch.int64)


@dataclass(frozen=True)
class Difference:
    """Copies of one piece of a tensor that are not equal.

    Attributes:
        name: of the tensor.
        wrong: ranks of the run whose copy is another than most have; all where none is in the
            majority.
        right: ranks whose copy most have; empty where none is in the majority.
    """

    name: str
    wrong: tuple[int, ...]
    right: tuple[int, ...]

    def __str__(self) -> str:
        wrong = _ranks(self.wrong)
        if self.right:
            return f"{self.name}: {wrong} has another copy than {_ranks(self.right)}"
        return f"{self.name}: {wrong} have different copies"


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"


class Copies:
    """The tensors of a run's processes, by name, and who holds equal copies."""

    def __init__(self, tensors: Mapping[str, Tensor], mesh: Mesh) -> None:
        """Find out which names several parts of a pipeline hold.

        Comm: all-gather of the names over pp.

        Args:
            tensors: of this process by the whole model's names; those of one name are equal.
            mesh: its mesh.
        """
        self._mesh, self._names = mesh, sorted(tensors)
        self._axes = {name: axes_of_copies(tensors[name], mesh) for name in self._names}
        self._shared: list[str] = []  # names that several places of the pipeline hold
        if mesh.pp.group is not None:
            found: list[list[str]] = [[] for _ in range(mesh.pp.size)]
            dist.all_gather_object(found, self._names, group=mesh.pp.group)
            counts = Counter(name for names in found for name in names)
            self._shared = sorted(name for name, count in counts.items() if count > 1)

    def differences(self, tensors: Mapping[str, Tensor]) -> list[Difference]:
        """The pieces whose copies differ; the same on all processes.

        Comm: an all-reduce of two numbers a tensor over each axis with copies, and of a flag over
        the world; of the pieces that differ a few words.
        """
        mesh, own = self._mesh, [bit_sum(tensors[name]) for name in self._names]
        sums = dict(zip(self._names, own, strict=True))
        unequal = torch.zeros((), dtype=torch.bool, device=mesh.device)
        for axis, names in self._by_axis():
            unequal |= _are_unequal([sums.get(name) for name in names], axis, mesh.device)
        if not are_true_anywhere([bool(unequal)], mesh.world, mesh.device)[0]:
            return []
        return self._named({name: int(value) for name, value in sums.items()})

    def _by_axis(self) -> Iterator[tuple[Axis, list[str]]]:
        """Each axis of several processes, and the names whose copies it holds."""
        mesh = self._mesh
        for axis in (mesh.replicate, mesh.shard, mesh.tp):
            names = [name for name in self._names if axis.name in self._axes[name]]
            if axis.group is not None and names:
                yield axis, names
        if self._shared:
            yield mesh.pp, self._shared

    def _named(self, sums: Mapping[str, int]) -> list[Difference]:
        """Compare all copies of each piece. Comm: all-gather of the sums over the world."""
        mesh = self._mesh
        mine = [(name, self._piece(name), value) for name, value in sums.items()]
        gathered: list[Any] = [None] * mesh.world.size
        dist.all_gather_object(gathered, (dist.get_rank(), mine), group=mesh.world.group)
        found: dict[tuple[str, Any], dict[int, int]] = defaultdict(dict)
        for rank, entries in gathered:
            for name, piece, value in entries:
                found[name, piece][rank] = value
        return [
            _difference(name, copies)
            for (name, _), copies in sorted(found.items())
            if len(set(copies.values())) > 1
        ]

    def _piece(self, name: str) -> tuple[tuple[str, int], ...]:
        """Which piece of a tensor this process holds."""
        mesh, copied = self._mesh, self._axes[name]
        axes = [mesh.replicate, mesh.shard, mesh.tp]
        if name not in self._shared:
            axes.append(mesh.pp)
        return tuple((axis.name, axis.rank) for axis in axes if axis.name not in copied)

    @torch.no_grad()
    def make_equal(self, tensors: Mapping[str, Tensor], differences: list[Difference]) -> None:
        """Give every process the copy that most have, or the one of the lowest rank.

        Comm: each piece that differs from one process to those with another copy, in turn.
        """
        rank, group = dist.get_rank(), self._mesh.world.group
        for difference in differences:
            source, *others = difference.right[:1] + difference.wrong
            if rank not in (source, *others):
                continue
            local = local_part(tensors[difference.name])
            for other in others:
                if rank == source:
                    dist.send(local.contiguous(), other, group=group)
                elif rank == other:
                    received = torch.empty_like(local, memory_format=torch.contiguous_format)
                    dist.recv(received, source, group=group)
                    local.copy_(received)


def _are_unequal(sums: list[Tensor | None], axis: Axis, device: torch.device) -> Tensor:
    """Whether processes of an axis have different sums, of those that have any: bool scalar."""
    lowest = torch.full((), torch.iinfo(torch.int64).min, device=device)
    largest = [lowest if value is None else value for value in sums]
    smallest = [lowest if value is None else ~value for value in sums]
    both = torch.stack([*largest, *smallest])
    dist.all_reduce(both, dist.ReduceOp.MAX, group=axis.group)
    return (both[: len(sums)] != ~both[len(sums) :]).any()


def _difference(name: str, copies: Mapping[int, int]) -> Difference:
    """What is wrong with the copies of a piece, by rank."""
    (value, most), *_ = Counter(copies.values()).most_common()
    if 2 * most <= len(copies):
        return Difference(name, tuple(sorted(copies)), ())
    right = tuple(sorted(rank for rank, other in copies.items() if other == value))
    wrong = tuple(sorted(rank for rank, other in copies.items() if other != value))
    return Difference(name, wrong, right)
