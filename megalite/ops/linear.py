"""Products, and functions of elements, whose rows are on request functions of their own row alone.

A BLAS chooses its order of additions by the number of rows: a sequence would get other last bits
beside others than alone. Inside of :func:`products_by_rows` a CPU's kernel adds in one order for
any number of rows. On a GPU products stay cuBLAS's: whoever wants equal bits there multiplies
equally many rows each time.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from megalite.ops.backends import chosen, row_kernels
from megalite.ops.matrix_product import learned_product

VECTORS = 64  # floats: more than PyTorch's loops take at once
SERIAL = 16384  # elements, that PyTorch gives to one thread

_wanted: list[bool] = []


@contextlib.contextmanager
def products_by_rows() -> Iterator[None]:
    """Make the products inside row by row where this device can; they have no gradient."""
    _wanted.append(True)
    try:
        yield
    finally:
        _wanted.pop()


def is_by_rows(like: Tensor) -> bool:
    """Whether :func:`products_by_rows` makes a row's product a function of the row alone."""
    return chosen(like) == "cpu" and row_kernels(like) is not None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply rows with a matrix.

    Args:
        x: [..., D].
        weight: [O, D].
        bias: [O], or None.

    Returns:
        [..., O].
    """
    ops = row_kernels(x) if _wanted else None
    if ops is None:
        return learned_product(x, weight, bias)
    y = ops.row_products(x.reshape(-1, x.shape[-1]), weight.contiguous(), bias)
    return y.view(*x.shape[:-1], weight.shape[0])


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of elements, on request so that a row of [..., F] is a function of the row alone.

    PyTorch computes what is left over by whole vectors, at the end of a tensor or of a thread's
    share, with other last bits: so each row gets whole vectors, and one thread works on few enough.
    """
    if not _wanted or row_kernels(x) is None:
        return function(x)
    width = x.shape[-1]
    rows = functional.pad(x.reshape(-1, width), (0, -width % VECTORS))
    parts = rows.split(max(1, SERIAL // rows.shape[1]))
    return torch.cat([function(part) for part in parts])[:, :width].reshape(x.shape)
