"""Attention of one query row a sequence over keys and values that stand in blocks.

Source: Kwon et al. 2023, arXiv:2309.06180, for the blocks.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from megalite.ops.attention import AttentionOptions, attention
from megalite.ops.backends import paged_kernels
from megalite.ops.mask import RowIntervals

KEY_TILE = 128  # keys; the largest tile of attention's kernels divides it


class Pools(NamedTuple):
    """The blocks of a layer, for all sequences.

    Attributes:
        keys: [blocks, G, R, H]; row r of a block is one key of each head.
        values: likewise.
    """

    keys: Tensor
    values: Tensor


class Places(NamedTuple):
    """Where the keys of B sequences stand, and which of them each query row sees.

    Attributes:
        tables: int32 [B, T], the block of each run of R keys.
        start: int32 [B], first key that a sequence's query row sees.
        end: int32 [B], one past the last; key ``end - 1`` is the query row's own.
        most_keys: K, no less than any end.
    """

    tables: Tensor
    start: Tensor
    end: Tensor
    most_keys: int


def paged_attention(
    q: Tensor,
    pools: Pools,
    places: Places,
    bias: Tensor | None,
    options: AttentionOptions,
) -> Tensor:
    """Attend from one query row of each sequence to its interval of keys.

    A row's result is a function of its own keys: no bit of it depends on the other sequences, on
    which blocks it has, or (where :data:`KEY_TILE` divides ``most_keys``) on K.

    Args:
        q: [B, N, H].
        pools: the layer's blocks, of q's dtype; fp32 on a CPU, where q may be narrower.
        places: where keys stand.
        bias: [N, K] fp32 by distance, its last that of a row's own key; or None.
        options: scale and cap; no dropout.

    Returns:
        [B, N, H], dtype of ``q``; 0 in rows without keys.
    """
    ops = paged_kernels(pools.keys, options.score_cap)
    if ops is None:
        return _gathered(q, pools, places, bias, options)
    tables, start, end, most = places
    own, scale = q.to(pools.keys.dtype), options.scale_of(q)
    out: Tensor = ops.paged_attention(
        own, *pools, tables, start, end, bias, most, scale, options.score_cap
    )
    return out.to(q.dtype)


def _gathered(
    q: Tensor, pools: Pools, places: Places, bias: Tensor | None, options: AttentionOptions
) -> Tensor:
    """The same by attention over copies of the keys, each sequence's last at the last place."""
    size = -(-places.most_keys // KEY_TILE) * KEY_TILE
    spare = (size - places.end)[:, None]  # [B, 1]
    own = (torch.arange(size, device=q.device) - spare).clamp(min=0)  # [B, size]
    rows = pools.keys.shape[2]
    blocks = places.tables.long().gather(1, (own // rows).clamp(max=places.tables.shape[1] - 1))
    k, v = (pool[blocks, :, own % rows] for pool in pools)  # [B, size, G, H]
    start = places.start[:, None] + spare
    mask = RowIntervals(start.int(), torch.full_like(start, size).int(), size)
    if bias is not None:
        bias = pad(bias, (size - places.most_keys, 0))
    return attention(q[:, None], k.to(q.dtype), v.to(q.dtype), mask, bias, options)[:, 0]
