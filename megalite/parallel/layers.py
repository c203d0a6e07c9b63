"""Linear layers and an embedding whose parameters know how they are split over tp.

A parameter is a DTensor over the mesh's tp axis where that has more than one process, else a plain
one; compute happens on local tensors. Sizes that don't divide are cut unevenly, as DTensor's
``Shard`` does, so a parameter has the same whole shape in every layout.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.nn import functional

from megalite.parallel.collectives import (
    copy_to,
    gather_sequence,
    reduce_from,
    scatter_sum_sequence,
    shard_bounds,
)
from megalite.parallel.mesh import Mesh
from megalite.parallel.products import Matrix


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

    def add(
        self, name: str, shape: tuple[int, ...], initial: Initial, shard: int | None = None
    ) -> None:
        """Declare a parameter.

        Args:
            name: its attribute.
            shape: of the whole parameter.
            initial: its first values.
            shard: the dimension that is split over tp; None for a copy on each process.
        """
        self.initial[name] = initial
        tp = self.mesh.tp
        if tp.size == 1:
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))
            return
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
        parameter = getattr(self, name)
        tensor = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        return copy_to(tensor, self.mesh.tp) if partial else tensor


def enter(x: Tensor, mesh: Mesh, length: int) -> Tensor:
    """Give every tp process all rows, before matrices that are split by columns.

    Args:
        x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
        mesh: the mesh.
        length: S.

    Returns:
        [B, S, D]. Identity forward, all-reduce backward; under sequence parallelism all-gather
        forward, reduce-scatter backward.
    """
    if mesh.sequence_parallel:
        return gather_sequence(x, mesh.tp, length)
    return copy_to(x, mesh.tp)


def leave(x: Tensor, mesh: Mesh) -> Tensor:
    """Sum partial results [B, S, D]{tp}: the twin of :func:`enter`.

    All-reduce forward, identity backward; under sequence parallelism reduce-scatter forward to
    [B, S/tp, D], all-gather backward.
    """
    if mesh.sequence_parallel:
        return scatter_sum_sequence(x, mesh.tp)
    return reduce_from(x, mesh.tp)


def own_rows(x: Tensor, mesh: Mesh) -> Tensor:
    """This process's rows of [B, S, ...] between matrices, padded with 0; no autograd."""
    if not mesh.sequence_parallel:
        return x
    each = -(-x.shape[1] // mesh.tp.size)
    part = x[:, mesh.tp.rank * each : (mesh.tp.rank + 1) * each]
    missing = each - part.shape[1]
    if missing:
        part = torch.cat((part, part.new_zeros(x.shape[0], missing, *x.shape[2:])), 1)
    return part


class ColumnParallelLinear(Layer):
    """y = x W^T + b with W [*out, D] and b [*out] split over tp along their first dimension."""

    def __init__(
        self, mesh: Mesh, out: tuple[int, ...], width: int, initial: Initial, bias: bool
    ) -> None:
        """Declare the weight.

        Args:
            mesh: the mesh.
            out: output dimensions, such as (N, H) or (F,).
            width: D.
            initial: of the weight; the bias starts as 0.
            bias: whether there is one.
        """
        super().__init__(mesh)
        self.add("weight", (*out, width), initial, shard=0)
        if bias:
            self.add("bias", out, Initial(), shard=0)
        self.has_bias = bias

    def matrix(self) -> Matrix:
        """What this process multiplies with: rows out[0]/tp x out[1:]."""
        weight = self.local("weight")
        bias = self.local("bias").flatten() if self.has_bias else None
        return Matrix(weight.flatten(0, -2), bias, weight.shape[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, S, D], the same on all of tp, to [B, S, out[0]/tp, *out[1:]]."""
        return self.matrix().times(x)


class SelectedLinear(Layer):
    """A linear layer [G, H, D] copied to every tp process, of which each computes a range of G.

    Key and value heads are so when they can't be split together with the query heads.
    """

    def __init__(
        self, mesh: Mesh, out: tuple[int, int], width: int, initial: Initial, bias: bool
    ) -> None:
        """Declare the weight [*out, width]."""
        super().__init__(mesh)
        self.add("weight", (*out, width), initial)
        if bias:
            self.add("bias", out, Initial())
        self.has_bias = bias
        self.bounds = (0, out[0])

    def matrix(self) -> Matrix:
        """What this process multiplies with: rows count x H, of the range ``bounds`` of G.

        Comm: all-reduce of the weight's gradient over tp, backward only.
        """
        first, last = self.bounds
        weight = self.local("weight", partial=True)[first:last]
        bias = self.local("bias", partial=True)[first:last].flatten() if self.has_bias else None
        return Matrix(weight.flatten(0, 1), bias, weight.shape[:2])

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, S, D] to [B, S, count, H]."""
        return self.matrix().times(x)


class RowParallelLinear(Layer):
    """y = x W^T + b with W [D, *inputs] split over tp along its second dimension."""

    def __init__(
        self, mesh: Mesh, inputs: tuple[int, ...], width: int, initial: Initial, bias: bool
    ) -> None:
        """Declare the weight [width, *inputs] and the bias [width]."""
        super().__init__(mesh)
        self.add("weight", (width, *inputs), initial, shard=1)
        if bias:
            self.add("bias", (width,), Initial())
        self.has_bias = bias

    def partial(self, x: Tensor) -> Tensor:
        """Map x [B, S, inputs[0]/tp, *inputs[1:]] to [B, S, D]{tp}, without the bias."""
        weight = self.local("weight").flatten(1)
        return functional.linear(x.flatten(2), weight)

    def finish(self, partial: Tensor) -> Tensor:
        """Sum [B, S, D]{tp} over tp and add the bias.

        Comm: see :func:`leave`.
        """
        y = leave(partial, self.mesh)
        if self.has_bias:
            y = y + self.local("bias", partial=self.mesh.sequence_parallel)
        return y


class Projection(Layer):
    """A linear layer copied to every tp process, working on the rows between matrices."""

    def __init__(
        self, mesh: Mesh, out: int, width: int, initial: Initial, bias: bool = False
    ) -> None:
        """Declare the weight [out, width]."""
        super().__init__(mesh)
        self.add("weight", (out, width), initial)
        if bias:
            self.add("bias", (out,), Initial())
        self.has_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, S', width] to [B, S', out]."""
        partial = self.mesh.sequence_parallel
        bias = self.local("bias", partial) if self.has_bias else None
        return functional.linear(x, self.local("weight", partial), bias)


class VocabParallelEmbedding(Layer):
    """Rows of W [V, E], split over tp along V; also the matrix of a tied head."""

    def __init__(self, mesh: Mesh, vocab_size: int, width: int, initial: Initial) -> None:
        """Declare the table."""
        super().__init__(mesh)
        self.vocab_size = vocab_size
        self.add("weight", (vocab_size, width), initial, shard=0)

    def forward(self, tokens: Tensor) -> Tensor:
        """Look up tokens [B, S] int64: [B, S, E], or [B, S/tp, E] under sequence parallelism.

        Comm: see :func:`leave`.
        """
        weight = self.local("weight")
        if self.mesh.tp.size == 1:
            return functional.embedding(tokens, weight)
        first, last = shard_bounds(self.vocab_size, self.mesh.tp)
        here = (tokens >= first) & (tokens < last)
        if last == first:
            rows = weight.sum() * torch.zeros(
                *tokens.shape, weight.shape[1], dtype=weight.dtype, device=tokens.device
            )
        else:
            rows = functional.embedding((tokens - first).clamp(0, last - first - 1), weight)
            rows = rows * here[..., None]
        return leave(rows, self.mesh)
