"""Whole numbers, whose sums and products are exact, so that no order of them is a rounding."""

import torch
from torch import Tensor


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Whole numbers from -9 to 9, the same for a seed on every process."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).to(dtype)


def padded(x: Tensor, dim: int, size: int, fill: float = 0.0) -> Tensor:
    """``x`` with ``fill`` behind it along ``dim``, up to ``size``."""
    shape = list(x.shape)
    shape[dim] = size - shape[dim]
    return torch.cat((x, x.new_full(shape, fill)), dim)


def shards(x: Tensor, dim: int, count: int) -> list[Tensor]:
    """``x`` in ``count`` pieces as ``torch.chunk`` cuts it, the last ones perhaps of no size."""
    pieces = list(x.chunk(count, dim))
    return pieces + [x.narrow(dim, 0, 0)] * (count - len(pieces))


def even_shards(x: Tensor, dim: int, count: int, fill: float = 0.0) -> list[Tensor]:
    """The same pieces, filled up to one size."""
    each = -(-x.shape[dim] // count)
    return [padded(piece, dim, each, fill) for piece in shards(x, dim, count)]
