"""Column-parallel products of one input, their communication hidden behind the gradients.

Source: Shoeybi et al. 2019, arXiv:1909.08053, section 3; the overlap is that of Korthikanti et al.
2022, arXiv:2205.05198, section 4.2.2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megalite import torch_private
from megalite.distributed.collectives import start_all_reduce, start_gather, start_reduce_scatter
from megalite.distributed.mesh import Mesh
from megalite.layers.adapter import LowRank
from megalite.layers.region import enter
from megalite.ops.linear import linear
from megalite.ops.matrix_product import add_product, product
from megalite.ops.quantised import Quantised, Weight, multiply


class Matrix(NamedTuple):
    """This process's rows of a linear layer.

    Attributes:
        weight: [O, D].
        bias: [O], or None.
        shape: what O stands for, such as (N/tp, H).
        adapter: what is added to its product; None where nothing is.
    """

    weight: Weight
    bias: Tensor | None
    shape: torch.Size
    adapter: LowRank | None = None

    @property
    def is_plain(self) -> bool:
        """Whether it is a matrix that may learn, and nothing beside it."""
        return self.adapter is None and not isinstance(self.weight, Quantised)

    def without_bias(self) -> "Matrix":
        """Its product alone, for an operator that adds the bias itself."""
        return self._replace(bias=None)

    def times(self, x: Tensor) -> Tensor:
        """Map x [B, S, D] to [B, S, *shape]."""
        if self.adapter is None:
            return self.shaped(multiply(x, self.weight, self.bias))
        return self.shaped(self.adapter.beside(x, self.weight, self.bias))

    def shaped(self, y: Tensor) -> Tensor:
        """[B, S, O], which nothing else uses, as [B, S, *shape]: no view for autograd."""
        if len(self.shape) == 1:
            return y
        return torch_private.shaped(y, (*y.shape[:-1], *self.shape))


def column_products(x: Tensor, matrices: Sequence[Matrix], mesh: Mesh, length: int) -> list[Tensor]:
    """Enter a region that is split over tp and multiply with several matrices there.

    Args:
        x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
        matrices: of the column-parallel layers that read ``x``.
        mesh: the mesh.
        length: S.

    Returns:
        [B, S, *shape] for each matrix.

    Comm: forward nothing; backward an all-reduce of [B, S, D] while the weights' gradients are
    computed. Under sequence parallelism forward an all-gather; backward the same again while the
    input's gradient is computed (only the local rows are kept), then a reduce-scatter of it while
    the weights' are. Beside adapters, and of quantised matrices, it is :func:`enter`: frozen
    weights have no gradients that a collective could hide behind.
    """
    if not all(matrix.is_plain for matrix in matrices):
        x = enter(x, mesh, length)
        return [matrix.times(x) for matrix in matrices]
    weights = [matrix.weight for matrix in matrices]
    biases = [matrix.bias for matrix in matrices]
    if mesh.tp.group is not None:
        results = _ColumnProducts.apply(x, mesh, length, *weights, *biases)
    elif len(matrices) > 1 and torch.is_grad_enabled():
        results = _Products.apply(x, *weights, *biases)
    else:
        return [matrix.times(x) for matrix in matrices]
    return [matrix.shaped(y) for matrix, y in zip(matrices, results, strict=True)]


class _Products(torch.autograd.Function):
    """Products of one input, whose gradient each adds to as it is made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights_biases: Any) -> tuple[Tensor, ...]:
        count = len(weights_biases) // 2
        weights, biases = weights_biases[:count], weights_biases[count:]
        ctx.save_for_backward(x, *weights)
        return tuple(linear(x, *pair) for pair in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        count, needs = len(weights), ctx.needs_input_grad
        rows = [gradient.flatten(0, -2) for gradient in gradients]
        dx = _sum_of_products(rows, weights).view(x.shape) if needs[0] else None
        return (dx, *_of_weights(rows, x.flatten(0, -2), needs[1 : 1 + count], needs[1 + count :]))


class _ColumnProducts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mesh: Mesh, length: int, *weights_biases: Any
    ) -> tuple[Tensor, ...]:
        count = len(weights_biases) // 2
        weights, biases = weights_biases[:count], weights_biases[count:]
        ctx.save_for_backward(x, *weights)
        ctx.mesh, ctx.length = mesh, length
        whole = start_gather(x, mesh.tp, 1, length).wait() if mesh.sequence_parallel else x
        pairs = zip(weights, biases, strict=True)
        return tuple(linear(whole, weight, bias) for weight, bias in pairs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        mesh, count = ctx.mesh, len(weights)
        gather = start_gather(x, mesh.tp, 1, ctx.length) if mesh.sequence_parallel else None
        rows = [gradient.flatten(0, 1) for gradient in gradients]
        dx = _sum_of_products(rows, weights).view(*gradients[0].shape[:2], -1)
        whole = x if gather is None else gather.wait()
        if mesh.sequence_parallel:
            reduction = start_reduce_scatter(dx, mesh.tp, 1)
        else:
            reduction = start_all_reduce(dx, mesh.tp)
        needs = ctx.needs_input_grad
        made = _of_weights(rows, whole.flatten(0, 1), needs[3 : 3 + count], needs[-count:])
        return (reduction.wait(), None, None, *made)


def _of_weights(
    rows: Sequence[Tensor], inputs: Tensor, needs_weight: Sequence[bool], needs_bias: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of all weights, then of all biases, by those of their products [T, O]."""
    dweights = [
        product(g.t(), inputs.t()) if n else None for g, n in zip(rows, needs_weight, strict=True)
    ]
    return dweights + [g.sum(0) if n else None for g, n in zip(rows, needs_bias, strict=True)]


def _sum_of_products(rows: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Sum of [T, O] @ [O, D] over the pairs: [T, D]."""
    total = product(rows[0], weights[0].t())
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        add_product(total, row, weight.t())
    return total
