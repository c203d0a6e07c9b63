"""Jobs that run each collective on inputs that every process can make, and give what came out."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalite import torch_private
from megalite.distributed import collectives
from megalite.distributed.broadcast import share_from_last, share_scalars_from_last
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Axis, ParallelConfig, build_mesh
from megalite.distributed.sums import all_reduce_sum, are_true_anywhere, sum_count, sum_metrics
from tests.dist.exact import even_shards, numbers, shards

SHAPES = ((2, 5), (3, 1, 2), (1, 6, 4), (2, 7, 3, 2))
KINDS = (  # strides of what goes in, and dtype
    ("contiguous", torch.float64),
    ("transposed, of odd ranks", torch.float64),
    ("sliced", torch.float64),
    ("expanded", torch.float64),
    ("transposed", torch.bfloat16),
)


@dataclass(frozen=True)
class Case:
    """One call of a collective.

    Attributes:
        name: of the collective.
        shape: of the whole tensor: what a gather gives, or a reduction takes.
        dim: that is split.
        strides: of what goes in, forward and backward.
        dtype: of all of it.
    """

    name: str
    shape: tuple[int, ...]
    dim: int
    strides: str
    dtype: torch.dtype

    def inputs(self, group: int, processes: int) -> list[Tensor]:
        """What each process of one of several groups puts in."""
        seed = 100 * group
        if self.name == "copy_to":
            return [self._laid_out(numbers(seed, *self.shape), rank) for rank in range(processes)]
        if self.name in ("gather_sequence", "start_gather", "gather_copies", "gather_even_copies"):
            whole = numbers(seed, *self.shape)
            cut = shards(whole, self.dim, processes)
            if self.name in ("gather_sequence", "gather_even_copies"):
                cut = even_shards(whole, self.dim, processes, fill=7.0)  # which nobody may read
            return [self._laid_out(piece, rank) for rank, piece in enumerate(cut)]
        seeds = [(seed + rank, rank) for rank in range(processes)]
        return [self._laid_out(numbers(s, *self.shape), rank) for s, rank in seeds]

    def upstreams(self, group: int, processes: int) -> list[Tensor]:
        """The gradient of what each process gets."""
        shape, seed = list(self.shape), 100 * group + 50
        if self.name == "scatter_sum_sequence":
            shape[1] = -(-shape[1] // processes)
        same = self.name in ("reduce_from", "gather_copies", "gather_even_copies")
        seeds = [(seed if same else seed + rank, rank) for rank in range(processes)]
        return [self._laid_out(numbers(s, *shape), rank) for s, rank in seeds]

    def _laid_out(self, x: Tensor, rank: int) -> Tensor:
        x = x.to(self.dtype)
        if self.strides == "transposed" or (rank % 2 and "odd ranks" in self.strides):
            return x.movedim(0, -1).contiguous().movedim(-1, 0)
        if self.strides == "sliced":
            return torch.stack((x, x + 1), -1).flatten(-2)[..., ::2]
        if self.strides == "expanded":
            return x.sum().sign().expand(x.shape)
        return x


def _cases(name: str, dims: tuple[int, ...]) -> list[Case]:
    return [
        Case(name, shape, dim, *kind)
        for shape, dim, kind in product(SHAPES, dims, KINDS)
        if dim < len(shape)
    ]


WITH_GRADIENT = {
    name: _cases(name, dims)
    for name, dims in {
        "copy_to": (1,),
        "reduce_from": (1,),
        "gather_sequence": (1,),
        "scatter_sum_sequence": (1,),
        "gather_copies": (0, 1, 2),
        "gather_even_copies": (1,),
    }.items()
}
WITHOUT_GRADIENT = {
    name: _cases(name, dims)
    for name, dims in {
        "all_reduce_sum": (0,),
        "start_all_reduce": (0,),
        "start_gather": (0, 1, 2),
        "start_reduce_scatter": (0, 1, 2),
        "gather_stacked": (0,),
    }.items()
}


def _apply(case: Case, x: Tensor, axis: Axis) -> Tensor:
    """What a process gets."""
    name, size = case.name, case.shape[case.dim]
    if name == "all_reduce_sum":
        return all_reduce_sum(x, axis)
    if name == "gather_sequence":
        return collectives.gather_sequence(x, axis, size)
    if name in ("gather_copies", "gather_even_copies"):
        return collectives.gather_copies(x, axis, case.dim, size)
    if name == "start_all_reduce":
        return collectives.start_all_reduce(x.contiguous(), axis).wait()
    if name == "start_gather":
        return collectives.start_gather(x, axis, case.dim, size).wait()
    if name == "start_reduce_scatter":
        return collectives.start_reduce_scatter(x, axis, case.dim).wait()
    return getattr(collectives, name)(x, axis)


def _axis(launch: Launch, name: str, layout: dict[str, int]) -> Axis:
    axis = getattr(build_mesh(launch, ParallelConfig(**layout), "cpu"), name)
    assert axis.group is not None
    return axis


def collective(launch: Launch, layout: dict[str, int]) -> dict[str, Any]:
    """Each collective over tp: result and gradient of its cases, or result and the input left."""
    axis = _axis(launch, "tp", layout)
    group, found = launch.rank // axis.size, {}
    for name, cases in WITH_GRADIENT.items():
        for number, case in enumerate(cases):
            x = case.inputs(group, axis.size)[axis.rank].detach().requires_grad_()
            y = _apply(case, x, axis)
            y.backward(case.upstreams(group, axis.size)[axis.rank])
            found[name, number] = y.detach().clone(), x.grad.clone()
    for name, cases in WITHOUT_GRADIENT.items():
        for number, case in enumerate(cases):
            x = case.inputs(group, axis.size)[axis.rank]
            found[name, number] = _apply(case, x, axis).clone(), x.clone()
    return found


def in_place(launch: Launch, layout: dict[str, int]) -> tuple[bool, Tensor]:
    """Whether an all-reduce that was started gives its argument back, and what is in it."""
    axis = _axis(launch, "tp", layout)
    x = numbers(axis.rank, 2, 5)
    return collectives.start_all_reduce(x, axis).wait() is x, x


def several_at_once(launch: Launch, layout: dict[str, int]) -> list[Tensor]:
    """Collectives that are all under way before the first is waited for, the last one first."""
    axis = _axis(launch, "tp", layout)
    pending = [
        collectives.start_gather(numbers(axis.rank, 2, 3), axis, 1, 3 * axis.size),
        collectives.start_all_reduce(numbers(10 + axis.rank, 4), axis),
        collectives.start_reduce_scatter(numbers(20 + axis.rank, 2, 7), axis, 1),
    ]
    return [one.wait().clone() for one in reversed(pending)]


def counted_calls(launch: Launch) -> dict[str, int]:
    """By how many the calls in each group were more behind three sums in one of two groups."""
    pair = dist.new_group([0, 1], group_desc="pair")
    for one in (0, 1):
        dist.new_group([one], group_desc="one")
    before = torch_private.calls_by_group()
    for _ in range(3):
        dist.all_reduce(torch.zeros(1), group=pair)
    after = torch_private.calls_by_group()
    return {name.partition(" ")[0]: after[name] - before[name] for name in after}


def sums(launch: Launch, layout: dict[str, int]) -> dict[str, Any]:
    """Sums of numbers, metrics and flags over dp."""
    axis, cpu = _axis(launch, "dp", layout), torch.device("cpu")
    rank, last = axis.rank, axis.size - 1
    names = ["loss", "tokens", "reward"]
    turned = names[rank % 3 :] + names[: rank % 3]
    values = {"loss": 0.5 + rank, "tokens": 10.0 * rank, "reward": -1.0 - rank}
    metrics = {name: torch.tensor(values[name]) for name in turned}
    return {
        "count": sum_count(2**53 if rank == 0 else 2.0, axis, cpu),
        "metrics": sum_metrics(metrics, axis),
        "precise": sum_metrics({"loss": torch.tensor(2.0**24 if rank == 0 else 1.0)}, axis),
        "flags": are_true_anywhere([False, rank == 0, rank == last, rank != last, True], axis, cpu),
    }


def results(group: int) -> dict[str, Tensor | tuple[Tensor, ...]]:
    """What the last process of one of several groups has to share."""
    seed = 100 * group
    whole = numbers(seed, 3, 5)
    return {
        "fp64": whole,
        "bf16": whole.bfloat16(),
        "int64": whole.long() + 2**40,
        "bool": whole > 0,
        "transposed": whole.t(),
        "scalar": whole.sum(),
        "empty": whole[:, :0],
        "tuple": (whole.float(), (whole < 0)[:2], whole.sum().int()),
        "tuple of one": (whole,),
    }


def shared(launch: Launch, layout: dict[str, int], group: int) -> dict[str, Any]:
    """What each process gets of what the last over pp has, and scalars by name."""
    axis, cpu = _axis(launch, "pp", layout), torch.device("cpu")
    own = group + launch.rank % (dist.get_world_size() // axis.size)
    is_last = axis.rank == axis.size - 1
    found: dict[str, Any] = {}
    for name, result in results(own).items():
        found[name] = share_from_last(result if is_last else None, axis, cpu)
    ignored = share_from_last(results(own + 7)["fp64"] if not is_last else torch.ones(2), axis, cpu)
    scalars = {"loss": torch.tensor(0.25 + own), "tokens": torch.tensor(3.0)} if is_last else {}
    found["ignored"] = ignored
    found["scalars"], names = share_scalars_from_last(scalars, None, axis, cpu)
    again, _ = share_scalars_from_last(scalars, names, axis, cpu)
    assert again == found["scalars"]
    exact = {"loss": torch.tensor(1.0 + own, dtype=torch.float64)} if is_last else {}
    found["fp64 scalars"], _ = share_scalars_from_last(exact, None, axis, cpu)
    return found
