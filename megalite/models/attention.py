"""Multi-head attention over row intervals, to itself or to an encoder."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from megalite.models.config import ModelConfig
from megalite.models.stream import Stream
from megalite.ops import AttentionOptions, RowIntervals, attention
from megalite.parallel.collectives import shard_bounds
from megalite.parallel.layers import (
    ColumnParallelLinear,
    Initial,
    RowParallelLinear,
    SelectedLinear,
)
from megalite.parallel.mesh import Axis, Mesh
from megalite.parallel.products import Matrix


@dataclass(frozen=True)
class HeadLayout:
    """Which heads one tp process computes.

    Attributes:
        queries: [first, last) query heads.
        groups: [first, last) key/value heads that they read.
        split: whether the key/value weights are split over tp like the query's.
        expand: for each local query head its place in ``groups``, or None where local query
            head n reads local group n // (N/tp / G/tp) as it is.
    """

    queries: tuple[int, int]
    groups: tuple[int, int]
    split: bool
    expand: tuple[int, ...] | None

    @classmethod
    def of(cls, num_heads: int, num_groups: int, tp: Axis) -> "HeadLayout":
        """Lay ``num_heads`` query heads and ``num_groups`` key/value heads out over ``tp``."""
        ratio = num_heads // num_groups
        first, last = shard_bounds(num_heads, tp)
        if -(-num_heads // tp.size) == -(-num_groups // tp.size) * ratio:
            return cls((first, last), shard_bounds(num_groups, tp), True, None)
        if first == last:  # no head is left for this process
            return cls((first, last), (0, 1), False, ())
        groups = (first // ratio, (last - 1) // ratio + 1)
        even = groups[1] - groups[0] == 1 or (first % ratio == 0 and last % ratio == 0)
        places = tuple(n // ratio - groups[0] for n in range(first, last))
        return cls((first, last), groups, False, None if even else places)


class Attention(nn.Module):
    """Query, key, value, output; products of the input to [B, S, D]{tp}."""

    def __init__(self, config: ModelConfig, mesh: Mesh, name: str, output_std: float) -> None:
        """Declare the weights.

        Args:
            config: of the model.
            mesh: the mesh.
            name: of this layer in the model; its cache and dropout go by it.
            output_std: of the output's initial weights.
        """
        super().__init__()
        heads, groups, width = config.num_heads, config.kv_heads, config.head_dim
        size, bias = config.hidden_size, config.qkv_bias
        std = Initial(config.init_std)
        self.config, self.name = config, name
        self.layout = HeadLayout.of(heads, groups, mesh.tp)
        self.query = ColumnParallelLinear(mesh, (heads, width), size, std, bias)
        self.key = self._key_value(mesh, (groups, width), std)
        self.value = self._key_value(mesh, (groups, width), std)
        self.output = RowParallelLinear(
            mesh, (heads, width), size, Initial(output_std), config.attention_bias
        )

    def _key_value(self, mesh: Mesh, out: tuple[int, int], std: Initial) -> nn.Module:
        size, bias = self.config.hidden_size, self.config.qkv_bias
        if self.layout.split:
            return ColumnParallelLinear(mesh, out, size, std, bias)
        linear = SelectedLinear(mesh, out, size, std, bias)
        linear.bounds = self.layout.groups
        return linear

    def matrices(self) -> list[Matrix]:
        """What multiplies this layer's input where it attends to itself: query, key, value."""
        return [self.query.matrix(), self.key.matrix(), self.value.matrix()]

    def to_itself(self, products: Sequence[Tensor], stream: Stream) -> Tensor:
        """Attend to the stream's own rows; gives [B, S, D]{tp} without the output's bias.

        Args:
            products: the input times :meth:`matrices`: [B, S, N/tp, H], twice [B, S, G/tp, H].
            stream: masks, tables, bias, dropout and cache of the batch.
        """
        interleaved = self.config.rope_interleaved
        query, key, v = products
        q, k = stream.rotate(query, interleaved), stream.rotate(key, interleaved)
        if stream.cache is not None:
            k, v = stream.cache.extend(self.name, k, v)
        return self._attend(q, k, v, stream, stream.mask, stream.bias)

    def to_encoder(self, q: Tensor, memory: Tensor | None, stream: Stream) -> Tensor:
        """Attend to the encoder's rows ``memory`` [B, Se, D], which the cache may know already.

        ``q`` [B, S, N/tp, H] is the input times the query's matrix.
        """

        def make() -> tuple[Tensor, Tensor]:
            return self.key(memory), self.value(memory)

        k, v = make() if stream.cache is None else stream.cache.once(self.name, make)
        return self._attend(q, k, v, stream, stream.cross, None)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, stream: Stream, mask: RowIntervals, bias
    ) -> Tensor:
        if q.shape[2] == 0:
            unused = k.sum() + v.sum() + (0.0 if bias is None else bias.sum())
            return self.output.partial(q) + 0.0 * unused
        if self.layout.expand is not None:
            places = torch.tensor(self.layout.expand, device=k.device)
            k, v = k.index_select(2, places), v.index_select(2, places)
        random = stream.dropout
        p = self.config.attention_dropout if random is not None else 0.0
        out = attention(
            q,
            k,
            v,
            mask,
            bias,
            AttentionOptions(
                self.config.scale,
                dropout_p=p,
                dropout_seed=random.site_seed(self.name) if p else 0,
                sample_ids=random.sample_ids if p else None,
                head_offset=self.layout.queries[0],
            ),
        )
        return self.output.partial(out)
