"""Linear layers whose matrices are split over tensor-parallel processes, or copied to all of them.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3.
"""

import torch
from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.layers.adapter import Adapter, AdapterOptions, LowRank, Split
from megalite.layers.layer import Initial, Layer
from megalite.layers.products import Matrix
from megalite.layers.quantised import QuantisedWeight
from megalite.layers.region import leave
from megalite.ops import Dropout
from megalite.ops.linear import linear
from megalite.ops.quantised import Format, Weight, multiply


class AdaptableLinear(Layer):
    """A linear layer that may have an adapter beside its matrix ``weight``.

    Attributes:
        adapter: None where it has none.
        guests: adapters of other models that have this one's frozen weights, by their names; None
            where there are none.
        quantised: the matrix, where it is held in 4 or 8 bits; None elsewhere.
    """

    weight: Tensor

    def __init__(self, mesh: Mesh, outs: int, split: Split) -> None:
        """Begin without one.

        Args:
            mesh: the mesh.
            outs: how many of the matrix's dimensions are outputs, the others inputs.
            split: which of them are split over tp, by their first.
        """
        super().__init__(mesh)
        self.adapter: Adapter | None = None
        self.guests: nn.ModuleDict | None = None
        self.quantised: QuantisedWeight | None = None
        self._outs, self._split = outs, split

    def adapt(self, name: str, options: AdapterOptions, guest: str = "") -> None:
        """Give it an adapter.

        Args:
            name: the layer's in the model.
            options: rank, scale and dropout.
            guest: the model whose adapter it is, which is off then; empty: that of the weights.
        """
        shape, outs = self.shape, self._outs
        factors = Adapter(self.mesh, name, (shape[:outs], shape[outs:]), options, self._split)
        if not guest:
            self.adapter = factors
            return
        factors.guest, factors.is_on = guest, False
        self.guests = self.guests if self.guests is not None else nn.ModuleDict()
        self.guests[guest] = factors

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole matrix: [*out, *inputs]."""
        return tuple(self.weight.shape if self.quantised is None else self.quantised.shape)

    def low_rank(
        self, random: Dropout | None, rows: tuple[int, int] | None = None
    ) -> LowRank | None:
        """What its adapters that are on add in a pass; None where none is. See :class:`Adapter`.

        Comm: as :meth:`Adapter.low_rank`.
        """
        if self.guests is None:
            return None if self.adapter is None else self.adapter.low_rank(random, rows)
        found: LowRank | None = None
        for adapter in (*self.guests.values(), self.adapter):
            own = adapter.low_rank(random, rows) if isinstance(adapter, Adapter) else None
            found = found if own is None else LowRank(*own[:-1], other=found)
        return found

    def quantise(self, form: Format) -> None:
        """Hold the matrix in 4 or 8 bits, in no parameter; it learns nothing then."""
        self.quantised = QuantisedWeight(self.weight, self._outs, form)
        del self._parameters["weight"]

    def local_weight(self, rows: tuple[int, int] | None = None) -> tuple[Weight, torch.Size]:
        """The matrix that this process multiplies with, [O, D], and what O stands for.

        Args:
            rows: [first, last) of the first dimension, of a matrix that each process of tp uses a
                range of; None: all that is here.

        Comm: with ``rows`` all-reduce of the weight's gradient over tp, backward only.
        """
        if self.quantised is not None:
            out = self.quantised.out()
            shape = out if rows is None else torch.Size((rows[1] - rows[0], *out[1:]))
            return self.quantised.matrix(rows), shape
        weight = self.local("weight", partial=rows is not None)
        weight = weight if rows is None else weight[rows[0] : rows[1]]
        outs = self._outs
        return weight.flatten(outs).flatten(0, outs - 1), weight.shape[:outs]


class ColumnParallelLinear(AdaptableLinear):
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
        super().__init__(mesh, len(out), "out")
        self.add("weight", (*out, width), initial, shard=0, rows=len(out))
        if bias:
            self.add("bias", out, Initial(), shard=0)
        self.has_bias = bias

    def matrix(self, random: Dropout | None = None) -> Matrix:
        """What this process multiplies with: rows out[0]/tp x out[1:].

        ``random`` is the adapter's dropout in this pass.
        """
        weight, shape = self.local_weight()
        return Matrix(weight, self.local_bias(), shape, self.low_rank(random))

    def local_bias(self) -> Tensor | None:
        """This process's part of the bias, [O]; None where there is none."""
        return self.local("bias").flatten() if self.has_bias else None

    def forward(self, x: Tensor, random: Dropout | None = None) -> Tensor:
        """Map x [B, S, D], the same on all of tp, to [B, S, out[0]/tp, *out[1:]]."""
        return self.matrix(random).times(x)


class SelectedLinear(AdaptableLinear):
    """A linear layer [G, H, D] copied to every tp process, of which each computes a range of G.

    Key and value heads are so when they can't be split together with the query heads.
    """

    def __init__(
        self, mesh: Mesh, out: tuple[int, int], width: int, initial: Initial, bias: bool
    ) -> None:
        """Declare the weight [*out, width]."""
        super().__init__(mesh, len(out), "no")
        self.add("weight", (*out, width), initial, rows=len(out))
        if bias:
            self.add("bias", out, Initial())
        self.has_bias = bias
        self.bounds = (0, out[0])

    def matrix(self, random: Dropout | None = None) -> Matrix:
        """What this process multiplies with: rows count x H, of the range ``bounds`` of G.

        ``random`` is the adapter's dropout in this pass.

        Comm: all-reduce of the weight's gradient over tp, backward only.
        """
        first, last = self.bounds
        weight, shape = self.local_weight(self.bounds)
        bias = self.local("bias", partial=True)[first:last].flatten() if self.has_bias else None
        adapter = self.low_rank(random, self.bounds)
        return Matrix(weight, bias, shape, adapter)

    def forward(self, x: Tensor, random: Dropout | None = None) -> Tensor:
        """Map x [B, S, D] to [B, S, count, H]."""
        return self.matrix(random).times(x)


class RowParallelLinear(AdaptableLinear):
    """y = x W^T + b with W [D, *inputs] split over tp along its second dimension."""

    def __init__(
        self, mesh: Mesh, inputs: tuple[int, ...], width: int, initial: Initial, bias: bool
    ) -> None:
        """Declare the weight [width, *inputs] and the bias [width]."""
        super().__init__(mesh, 1, "inputs")
        self.add("weight", (width, *inputs), initial, shard=1, rows=1)
        if bias:
            self.add("bias", (width,), Initial())
        self.has_bias = bias

    def partial(self, x: Tensor, random: Dropout | None = None) -> Tensor:
        """Map x [B, S, inputs[0]/tp, *inputs[1:]] to [B, S, D]{tp}, without the bias.

        ``random`` is the adapter's dropout in this pass.
        """
        x = x.flatten(2)
        weight, _ = self.local_weight()
        adapter = self.low_rank(random)
        return multiply(x, weight) if adapter is None else adapter.beside(x, weight)

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
        self.add("weight", (out, width), initial, rows=1)
        if bias:
            self.add("bias", (out,), Initial())
        self.has_bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, S', width] to [B, S', out]."""
        partial = self.mesh.sequence_parallel
        bias = self.local("bias", partial) if self.has_bias else None
        return linear(x, self.local("weight", partial), bias)
