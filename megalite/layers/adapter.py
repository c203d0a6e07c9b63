"""Low-rank adapters: what a linear layer with a frozen matrix W learns, y = W x + scale U (A x).

DoRA learns the sizes |.| of rows too: y = (1 + c) |W| / |V| V x, where V = W + scale U A has the
direction and |V| is a constant for the gradient. c starts as 0: it is the relative change of a
row's size, so that a narrow number format loses nothing of it near 1.

Under tp each factor lies as the matrix beside it does: U is split where its matrix is split by
outputs, A where it is split by inputs, and the other one is copied.

Source: Hu et al. 2021, arXiv:2106.09685; Liu et al. 2024, arXiv:2402.09353, section 4.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from megalite.distributed.collectives import reduce_from, shard_bounds
from megalite.distributed.mesh import Axis, Mesh
from megalite.layers.layer import Initial, Layer
from megalite.ops import Dropout, Drops, dropout
from megalite.ops.linear import linear
from megalite.ops.quantised import Quantised, Weight, dequantised, multiply

Split = Literal["out", "inputs", "no"]  # the dimensions of a matrix that are split over tp


@dataclass(frozen=True)
class AdapterOptions:
    """What an adapter is.

    Attributes:
        rank: r.
        scale: factor of its product.
        dropout: probability of dropping an element of its input.
        dora: whether the sizes of rows learn too.
    """

    rank: int
    scale: float
    dropout: float = 0.0
    dora: bool = False


class LowRank(NamedTuple):
    """This process's share of an adapter, for one pass.

    Attributes:
        down: [r, D].
        up: [O, r].
        scale: factor of the product.
        drops: which elements of its input are dropped; None where none is.
        change: [O], relative changes of the sizes of rows; None without DoRA.
        inputs: axis over which rows are split; None where they are whole.
        other: another adapter, without DoRA, whose product is added too.
    """

    down: Tensor
    up: Tensor
    scale: float
    drops: Drops | None
    change: Tensor | None = None
    inputs: Axis | None = None
    other: "LowRank | None" = None

    def beside(self, x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
        """Map x [B, S, D] to [B, S, O] by this and the frozen matrix [O, D].

        Comm: with DoRA all-reduce of [2, O] over the axis that splits rows, forward only.
        """
        if self.change is None:
            return multiply(x, weight, bias) + self.times(x)
        sizes = row_sizes(weight, self.down, self.scale * self.up.float(), self.inputs)
        factor = row_factor(self.change.float(), *sizes).to(x.dtype)
        y = (multiply(x, weight) + self.times(x)) * factor
        return y if bias is None else y + bias

    def times(self, x: Tensor) -> Tensor:
        """Map x [B, S, D] to [B, S, O]."""
        own = x
        if self.drops is not None and x.numel():
            own = dropout(x, *self.drops.arguments)
        y = linear(linear(own, self.down) * self.scale, self.up)
        return y if self.other is None else y + self.other.times(x)


@torch.no_grad()
def row_sizes(
    weight: Weight, down: Tensor, up: Tensor, inputs: Axis | None = None
) -> tuple[Tensor, Tensor]:
    """The sizes [O] of the rows of W and of W + U A, in fp32.

    Args:
        weight: W, [O, D].
        down: A, [r, D].
        up: U with its scale, [O, r] fp32.
        inputs: axis over which rows are split; None where they are whole.

    Comm: all-reduce of [2, O] over ``inputs``.
    """
    whole = dequantised(weight, torch.float32) if isinstance(weight, Quantised) else weight.float()
    squares = torch.stack([whole.square().sum(1), (whole + up @ down.float()).square().sum(1)])
    if inputs is not None:
        squares = reduce_from(squares, inputs)
    before, after = squares.sqrt()
    return before, after


def row_factor(change: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What DoRA multiplies the rows of W + U A with, by the sizes of :func:`row_sizes`: [O].

    A row of zeros stays one.
    """
    return (1 + change) * torch.where(after > 0, before / after, 1.0)


class Adapter(Layer):
    """The factors ``down`` [r, *inputs] and ``up`` [*out, r] beside a matrix [*out, *inputs].

    DoRA's has ``change`` [*out] too.

    Attributes:
        is_on: whether the layer adds its product.
        guest: the model whose adapter it is; empty: the one whose weights stand beside it.
    """

    def __init__(
        self,
        mesh: Mesh,
        name: str,
        shape: tuple[tuple[int, ...], tuple[int, ...]],
        options: AdapterOptions,
        split: Split,
    ) -> None:
        """Declare the factors; ``up`` starts as 0, so that the first product is the matrix's own.

        Args:
            mesh: the mesh.
            name: of the layer in the model; its dropout goes by it.
            shape: (out, inputs) of the matrix.
            options: rank, scale and dropout.
            split: which of the matrix's dimensions are split over tp, by their first.
        """
        super().__init__(mesh)
        out, inputs = shape
        self.inputs = inputs
        self.name, self.options, self.split, self.is_on = name, options, split, True
        self.guest = ""
        # The variance of the published code, whose values are uniform in +-1 / sqrt(D).
        std = Initial((3 * math.prod(inputs)) ** -0.5)
        down, up = (options.rank, *inputs), (*out, options.rank)
        self.add("down", down, std, shard=1 if split == "inputs" else None, rows=1)
        self.add("up", up, Initial(), shard=0 if split == "out" else None, rows=len(out))
        if options.dora:
            self.add("change", out, Initial(), shard=0 if split == "out" else None)

    def low_rank(
        self, random: Dropout | None, rows: tuple[int, int] | None = None
    ) -> LowRank | None:
        """What this process multiplies with beside its part of the matrix; None while it is off.

        Args:
            random: dropout of the pass, or None.
            rows: [first, last) of the first dimension of ``out``, of a matrix that each process of
                tp uses a range of.

        Comm: all-reduce over tp of the gradient of what is copied, backward only.
        """
        if not self.is_on:
            return None
        down = self.local("down", partial=self.split != "inputs").flatten(1)
        up, change = self._of_rows("up", rows), None
        if self.options.dora:
            change = self._of_rows("change", rows).flatten()
        inputs = self.mesh.tp if self.split == "inputs" else None
        drops = self._drops(random)
        return LowRank(down, up.flatten(0, -2), self.options.scale, drops, change, inputs)

    def _of_rows(self, name: str, rows: tuple[int, int] | None) -> Tensor:
        """This process's part of a parameter whose first dimension is that of ``out``."""
        part = self.local(name, partial=self.split != "out")
        return part if rows is None else part[rows[0] : rows[1]]

    def _drops(self, random: Dropout | None) -> Drops | None:
        p = self.options.dropout
        if random is None or p == 0.0:
            return None
        first, inputs = 0, self.inputs
        if self.split == "inputs":
            first = shard_bounds(inputs[0], self.mesh.tp)[0] * math.prod(inputs[1:])
        seed = random.site_seed(f"{self.name}.adapter")
        return Drops(p, seed, random.sample_ids, feature_offset=first)
