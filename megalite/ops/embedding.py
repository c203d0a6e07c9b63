"""The embedding of tokens from a slice of the vocabulary, its gradient summed in a fixed order."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from megalite.errors import ShapeError
from megalite.ops.backends import kernels


def embedding(
    weight: Tensor, ids: Tensor, offset: int = 0, vocabulary: int | None = None
) -> Tensor:
    """Look up rows of a table, or of the slice of it that is here.

    The gradient of a row is the sum over its places, one after the other: in fp32, rounded once,
    the same bits at each run.

    Args:
        weight: [V, D], or [V/tp, D] where other processes have the other slices.
        ids: int64 [...].
        offset: number of the first row here.
        vocabulary: rows of the whole table; None: all are here.

    Returns:
        [..., D], dtype of ``weight``; 0 for ids of other slices.

    Raises:
        ShapeError: ``weight`` is not [V, D], or ``ids`` are not int64.
        IndexError: on a CPU, an id is out of the vocabulary. A GPU prints it and stops.
    """
    if weight.dim() != 2 or ids.dtype != torch.int64:
        raise ShapeError(
            f"embedding: weight must be [V, D] and ids int64, came {list(weight.shape)} and "
            f"{ids.dtype}"
        )
    vocabulary = weight.shape[0] if vocabulary is None else vocabulary
    ops = kernels(weight)
    if ops is None:
        return _reference(weight, ids, offset, vocabulary)
    if not torch.is_grad_enabled():
        found: Tensor = ops.embedding(weight, ids, offset, vocabulary)
        return found
    return _Embedding.apply(weight, ids, offset, vocabulary)


def _reference(weight: Tensor, ids: Tensor, offset: int, vocabulary: int) -> Tensor:
    """The same in plain PyTorch."""
    _check(ids, vocabulary)
    place = ids - offset
    here = (place >= 0) & (place < weight.shape[0])
    table = functional.pad(weight, (0, 0, 0, 1))  # a row of zeros for those that are not here
    return functional.embedding(torch.where(here, place, weight.shape[0]), table)


def _check(ids: Tensor, vocabulary: int) -> None:
    if ids.device.type == "meta":
        return
    bad = ((ids < 0) | (ids >= vocabulary)).flatten()
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        raise IndexError(
            f"embedding ids: must be in [0, {vocabulary}), came {int(ids.flatten()[first])} in "
            f"place {first}"
        )


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, offset: int, vocabulary: int) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.ops, ctx.place = kernels(weight), (offset, weight.shape[0])
        found: Tensor = ctx.ops.embedding(weight, ids, offset, vocabulary)
        return found

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        return ctx.ops.embedding_backward(dout, ids, *ctx.place), None, None, None
