"""Jobs that run each sharded layer alone and give its result, and the gradients of all it reads."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.engine.initial import initialise
from megalite.layers.embedding import VocabParallelEmbedding
from megalite.layers.layer import Initial
from megalite.layers.linear import (
    ColumnParallelLinear,
    Projection,
    RowParallelLinear,
    SelectedLinear,
)
from megalite.layers.products import column_products
from megalite.layers.region import enter, leave, own_rows
from megalite.layers.shards import local_part
from megalite.models.config import ModelConfig
from megalite.models.norm import Norm
from megalite.models.stack import RelativeBias, Table
from tests.dist.exact import numbers, shards
from tests.dist.placing import double, gradients, mesh_of, place, split_dim, stream

BATCH, WIDTH, HEADS = 2, 4, (5, 3)
LENGTHS = (1, 5, 6)  # less than the processes, not divided by them, divided by 2 and 3
SELECTED = ((0, 2), (1, 3), (0, 1), (2, 3))  # of 3 heads, by process; some read by several
MODES = ("trained", "frozen", "constant input")
STD = Initial(0.02)


@dataclass(frozen=True)
class Case:
    """A layer and a call of it.

    Attributes:
        build: makes it.
        run: calls it with its local input, mesh and length S; gives its results.
        outs: what follows [B, S] in the shape of each whole result.
        takes: ``stream``: [B, S, D], its rows perhaps split over tp; ``heads``: dimension 2 split
            over tp; ``tokens``, ``positions`` or ``distances``.
        gives: ``stream``, ``heads``; ``selected``: a range of dimension 2; ``bias``: dimension 0
            split over tp.
        frozen: parameters without gradient in that mode; none named is all.
    """

    build: Callable[[Mesh], nn.Module]
    run: Callable[[Any, Tensor, Mesh, int], list[Tensor]]
    outs: tuple[tuple[int, ...], ...] = ((WIDTH,),)
    takes: str = "stream"
    gives: str = "stream"
    frozen: tuple[str, ...] = ()


def _column(out: tuple[int, ...], bias: bool) -> Case:
    return Case(
        lambda mesh: ColumnParallelLinear(mesh, out, WIDTH, STD, bias),
        lambda layer, x, mesh, length: [layer(enter(x, mesh, length))],
        outs=(out,),
        gives="heads",
    )


def _products(*frozen: str) -> Case:
    outs, biases = (HEADS, (7,), (3, 2)), (True, False, True)

    def build(mesh: Mesh) -> nn.Module:
        pairs = zip(outs, biases, strict=True)
        return nn.ModuleList(ColumnParallelLinear(mesh, out, WIDTH, STD, b) for out, b in pairs)

    def run(layers: Any, x: Tensor, mesh: Mesh, length: int) -> list[Tensor]:
        return column_products(x, [layer.matrix() for layer in layers], mesh, length)

    return Case(build, run, outs, gives="heads", frozen=frozen)


def _selected(bias: bool) -> Case:
    def build(mesh: Mesh) -> nn.Module:
        layer = SelectedLinear(mesh, (3, 2), WIDTH, STD, bias)
        if mesh.tp.size > 1:
            layer.bounds = SELECTED[mesh.tp.rank]
        return layer

    return Case(
        build, lambda layer, x, mesh, length: [layer(enter(x, mesh, length))], gives="selected"
    )


def _row(inputs: tuple[int, ...], bias: bool) -> Case:
    return Case(
        lambda mesh: RowParallelLinear(mesh, inputs, WIDTH, STD, bias),
        lambda layer, x, *_: [layer.finish(layer.partial(x))],
        takes="heads",
    )


def _projection(bias: bool) -> Case:
    return Case(
        lambda mesh: Projection(mesh, 3, WIDTH, STD, bias),
        lambda layer, x, *_: [layer(x)],
        outs=((3,),),
    )


def _embedding(size: int) -> Case:
    return Case(
        lambda mesh: VocabParallelEmbedding(mesh, size, WIDTH, STD),
        lambda layer, tokens, *_: [layer(tokens)],
        takes="tokens",
    )


def _table(layer: Table, positions: Tensor, mesh: Mesh, _length: int) -> list[Tensor]:
    return [layer(own_rows(positions, mesh))]


def _relative(both_ways: bool) -> Case:
    config = ModelConfig(
        num_heads=5, head_size=2, hidden_size=10, relative_buckets=8, relative_max_distance=6
    )
    return Case(
        lambda mesh: RelativeBias(config, mesh, both_ways),
        lambda layer, distances, *_: [layer(distances)],
        takes="distances",
        gives="bias",
    )


def _norm(kind: str) -> Case:
    config = ModelConfig(norm=kind, hidden_size=WIDTH, num_heads=1)
    return Case(lambda mesh: Norm(config, mesh), lambda layer, x, *_: [layer(x)])


CASES = {
    "column, heads": _column(HEADS, True),
    "column, flat": _column((7,), False),
    "products": _products(),
    "products, some frozen": _products("0.weight", "2.bias"),
    "products, a matrix frozen": _products("1.weight"),
    "selected": _selected(True),
    "selected, no bias": _selected(False),
    "row, heads": _row(HEADS, True),
    "row, flat": _row((7,), False),
    "projection": _projection(True),
    "projection, no bias": _projection(False),
    "embedding of 7": _embedding(7),
    "embedding of 5": _embedding(5),  # a process of 4 has none
    "table": Case(lambda mesh: Table(mesh, 9, WIDTH, 0.02), _table, takes="positions"),
    "relative, both ways": _relative(True),
    "relative, backwards": _relative(False),
    "rms_norm": _norm("rms_norm"),
    "layer_norm": _norm("layer_norm"),
}


def whole_input(name: str, length: int) -> Tensor:
    """What the layer reads, of all processes."""
    takes = CASES[name].takes
    if takes == "stream":
        return numbers(1, BATCH, length, WIDTH)
    if takes == "heads":
        return numbers(1, BATCH, length, *(HEADS if "heads" in name else (7,)))
    if takes == "distances":
        return torch.arange(1 - length, length)
    size = {"embedding of 7": 7, "embedding of 5": 5, "table": 9}[name]
    return numbers(1, BATCH, length).long() % size


def whole_parameters(layer: nn.Module) -> dict[str, Tensor]:
    """Values for all of each parameter."""
    return {
        name: numbers(10 + number, *parameter.shape)
        for number, (name, parameter) in enumerate(layer.named_parameters())
    }


def upstreams(name: str, length: int) -> list[Tensor]:
    """The gradient of each whole result."""
    case = CASES[name]
    if case.gives == "bias":
        return [numbers(50, HEADS[0], 2 * length - 1)]
    return [numbers(50 + n, BATCH, length, *out) for n, out in enumerate(case.outs)]


def selections(processes: int) -> tuple[tuple[int, int], ...]:
    """The range of heads that each process reads of a selected linear layer."""
    return SELECTED[:processes] if processes > 1 else ((0, 3),)


def selected_upstreams(length: int, processes: int) -> list[Tensor]:
    """The gradient of what each process reads there, each in its own way."""
    bounds = enumerate(selections(processes))
    return [numbers(60 + rank, BATCH, length, last - first, 2) for rank, (first, last) in bounds]


def _local_input(name: str, mesh: Mesh, length: int) -> Tensor:
    x, takes = whole_input(name, length), CASES[name].takes
    if takes == "stream":
        return stream(x, mesh, fill=7.0)  # rows past S hold what nobody may read
    return shards(x, 2, mesh.tp.size)[mesh.tp.rank] if takes == "heads" else x


def _local_upstreams(name: str, mesh: Mesh, length: int) -> list[Tensor]:
    """The gradient of each result of this process."""
    gives, tp = CASES[name].gives, mesh.tp
    if gives == "selected":
        return [selected_upstreams(length, tp.size)[tp.rank]]
    if gives == "stream":
        return [stream(u, mesh, fill=0.0) for u in upstreams(name, length)]
    dim = 0 if gives == "bias" else 2
    return [shards(u, dim, tp.size)[tp.rank] for u in upstreams(name, length)]


def _run(name: str, mesh: Mesh, length: int, mode: str) -> dict[str, Any]:
    """Results, gradient of the input, and gradients of the parameters by name where they have one.

    Also the dimension of each parameter that is split.
    """
    case = CASES[name]
    layer = case.build(mesh)
    place(layer, whole_parameters(layer), mesh.tp)
    for key, parameter in layer.named_parameters():
        is_frozen = mode == "frozen" and (not case.frozen or key in case.frozen)
        parameter.requires_grad_(not is_frozen)
    x = _local_input(name, mesh, length).clone()
    x.requires_grad_(x.is_floating_point() and mode != "constant input")
    ys = case.run(layer, x, mesh, length)
    pairs = zip(ys, _local_upstreams(name, mesh, length), strict=True)
    needed = [(y, u.to(y.dtype)) for y, u in pairs if y.requires_grad]
    if needed:
        torch.autograd.backward(*zip(*needed, strict=True))
    return {
        "y": [y.detach() for y in ys],
        "x": x.grad,
        "gradients": gradients(layer),
        "dims": {key: split_dim(parameter) for key, parameter in layer.named_parameters()},
    }


def layers(launch: Launch, layout: dict[str, Any]) -> dict[tuple, dict[str, Any]]:
    """What each case gives, by its name, length and mode."""
    mesh = mesh_of(launch, layout)
    with double():
        return {key: _run(key[0], mesh, *key[1:]) for key in product(CASES, LENGTHS, MODES)}


class _All(nn.Module):
    """The layers of all cases."""

    def __init__(self, mesh: Mesh) -> None:
        super().__init__()
        self.mesh = mesh
        self.layers = nn.ModuleDict({name: case.build(mesh) for name, case in CASES.items()})


def initial(launch: Launch, layout: dict[str, Any]) -> dict[str, tuple[Tensor, Tensor, Any]]:
    """Initial values of every parameter: whole, what is here, and the dimension that is split."""
    every, found = _All(mesh_of(launch, layout)), {}
    initialise(every, seed=3)
    for name, parameter in every.named_parameters():
        data = parameter.detach()
        whole = data.full_tensor() if isinstance(data, DTensor) else data
        found[name] = whole, local_part(data), split_dim(data)
    return found


def regions(launch: Launch, layout: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """Into and out of the split region: results and gradients, by length."""
    mesh, found = mesh_of(launch, layout), {}
    rank = mesh.tp.rank
    for length in LENGTHS:
        whole = numbers(1, BATCH, length, WIDTH)
        x = stream(whole, mesh, fill=7.0).clone().requires_grad_()
        inside = enter(x, mesh, length)
        inside.backward(numbers(50 + rank, *inside.shape))
        partial = numbers(20 + rank, *whole.shape).requires_grad_()
        outside = leave(partial, mesh)
        outside.backward(stream(numbers(60, *whole.shape), mesh, fill=0.0))
        found[length] = {
            "inside": inside.detach(),
            "x": x.grad,
            "outside": outside.detach(),
            "partial": partial.grad,
            "rows": own_rows(whole, mesh),
            "positions": own_rows(whole[:, :, 0].int(), mesh),
        }
    return found
