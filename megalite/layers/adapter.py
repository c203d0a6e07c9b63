"""Low-rank adapters: what a linear layer with a frozen matrix W learns, y = W x + scale U (A x).

Under tp each factor lies as the matrix beside it does: U is split where its matrix is split by
outputs, A where it is split by inputs, and the other one is copied.

Source: Hu et al. 2021, arXiv:2106.09685.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from megalite.distributed.collectives import shard_bounds
from megalite.distributed.mesh import Mesh
from megalite.layers.layer import Initial, Layer
from megalite.ops import Dropout, Drops, dropout
from megalite.ops.linear import linear

Split = Literal["out", "inputs", "no"]  # the dimensions of a matrix that are split over tp


@dataclass(frozen=True)
class AdapterOptions:
    """What an adapter is.

    Attributes:
        rank: r.
        scale: factor of its product.
        dropout: probability of dropping an element of its input.
    """

    rank: int
    scale: float
    dropout: float = 0.0


class LowRank(NamedTuple):
    """This process's share of an adapter, for one pass.

    Attributes:
        down: [r, D].
        up: [O, r].
        scale: factor of the product.
        drops: which elements of its input are dropped; None where none is.
    """

    down: Tensor
    up: Tensor
    scale: float
    drops: Drops | None

    def times(self, x: Tensor) -> Tensor:
        """Map x [B, S, D] to [B, S, O]."""
        if self.drops is not None and x.numel():
            x = dropout(x, *self.drops.arguments)
        return linear(linear(x, self.down) * self.scale, self.up)


class Adapter(Layer):
    """The factors ``down`` [r, *inputs] and ``up`` [*out, r] beside a matrix [*out, *inputs].

    Attributes:
        is_on: whether the layer adds its product.
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
        # The variance of the published code, whose values are uniform in +-1 / sqrt(D).
        std = Initial((3 * math.prod(inputs)) ** -0.5)
        down, up = (options.rank, *inputs), (*out, options.rank)
        self.add("down", down, std, shard=1 if split == "inputs" else None, rows=1)
        self.add("up", up, Initial(), shard=0 if split == "out" else None, rows=len(out))

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
        up = self.local("up", partial=self.split != "out")
        up = (up if rows is None else up[rows[0] : rows[1]]).flatten(0, -2)
        return LowRank(down, up, self.options.scale, self._drops(random))

    def _drops(self, random: Dropout | None) -> Drops | None:
        p = self.options.dropout
        if random is None or p == 0.0:
            return None
        first, inputs = 0, self.inputs
        if self.split == "inputs":
            first = shard_bounds(inputs[0], self.mesh.tp)[0] * math.prod(inputs[1:])
        seed = random.site_seed(f"{self.name}.adapter")
        return Drops(p, seed, random.sample_ids, feature_offset=first)
