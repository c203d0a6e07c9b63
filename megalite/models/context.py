"""What every block of a stack reads besides its input: made once a batch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.ops import AttentionOptions, Dropout, Drops, RowIntervals, dropout, rope


class KeyValueCache(Protocol):
    """All that a model knows of decoding: it keeps keys and values, and attends to them."""

    def attend(
        self,
        layer: str,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: RowIntervals,
        bias: Tensor | None,
        options: AttentionOptions,
    ) -> Tensor:
        """Keep the keys and values of new rows, and attend to those of all rows so far.

        Args:
            layer: the layer's name.
            qkv: [B, S, N, H] and twice [B, S, G, H] of the new rows.
            mask: of the new rows over all.
            bias: by distance over all rows, or None.
            options: scale and cap.

        Returns:
            [B, S, N, H].
        """

    def attend_to(
        self,
        layer: str,
        q: Tensor,
        make: Callable[[], tuple[Tensor, Tensor]],
        mask: RowIntervals,
        options: AttentionOptions,
    ) -> Tensor:
        """Attend to an encoder's keys and values, [B, Se, G, H], made at the first call.

        The first call may come with no row, q [B, 0, N, H].
        """


@dataclass(frozen=True)
class Context:
    """What the blocks of the encoder, or of the decoder, share in one pass.

    Attributes:
        length: S, rows of the stream in this pass.
        mask: the batch's row intervals over this stream's keys.
        cross: the batch's row intervals over the encoder's rows, or None.
        tables: RoPE's (cos, sin), or None.
        bias: [N/tp, Sq + Sk - 1] fp32 a head and distance, or None.
        dropout: None turns it off.
        cache: keys and values of earlier rows, or None.
        window_tables: RoPE's (cos, sin) in layers with a window.
        looks_both_ways: a window is around a row, not up to it.
        keeps_products: matrix products are kept for the backward pass as they are, so nothing is
            written over them.
    """

    length: int
    mask: RowIntervals
    cross: RowIntervals | None = None
    tables: tuple[Tensor, Tensor] | None = None
    bias: Tensor | None = None
    dropout: Dropout | None = None
    cache: KeyValueCache | None = None
    keeps_products: bool = False
    window_tables: tuple[Tensor, Tensor] | None = None
    looks_both_ways: bool = False

    def rotate(self, product: Tensor, interleaved: bool, is_windowed: bool = False) -> Tensor:
        """Turn queries or keys [B, S, N, H] by their positions, where the model does."""
        tables = self.window_tables if is_windowed else self.tables
        if tables is None:
            return product
        in_place = not self.keeps_products
        return rope(product, *tables, interleaved=interleaved, in_place=in_place)

    def drops(self, x: Tensor, p: float, site: str, mesh: Mesh) -> Drops | None:
        """Which elements of [B, S', D] between matrices are dropped; None where none is."""
        if self.dropout is None or p == 0.0:
            return None
        offset = x.shape[1] * mesh.tp.rank if mesh.sequence_parallel else 0
        return Drops(p, self.dropout.site_seed(site), self.dropout.sample_ids, offset)

    def drop(self, x: Tensor, p: float, site: str, mesh: Mesh) -> Tensor:
        """Dropout of [B, S', D] between matrices."""
        drops = self.drops(x, p, site, mesh)
        return x if drops is None else dropout(x, *drops.arguments)


def alibi_slopes(num_heads: int) -> list[float]:
    """ALiBi's slope of each head; Press et al. 2021, arXiv:2108.12409, and its published code."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (i + 1) / power) for i in range(power)]
    extra = [2.0 ** (-4.0 * (2 * i + 1) / power) for i in range(num_heads - power)]
    return slopes + extra


def relative_bucket(distance: Tensor, both_ways: bool, buckets: int, furthest: int) -> Tensor:
    """T5's bucket of each key - query; Raffel et al. 2019, arXiv:1910.10683, and its code."""
    offset = torch.zeros_like(distance)
    if both_ways:
        buckets //= 2
        offset = (distance > 0) * buckets
        away = distance.abs()
    else:
        away = (-distance).clamp(min=0)
    exact = buckets // 2
    ratio = torch.log(away.float().clamp(min=1) / exact) / math.log(furthest / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(away < exact, away, far)
