"""Multi-head attention over row intervals, to itself or to an encoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from megalite.distributed.collectives import shard_bounds
from megalite.distributed.mesh import Axis, Mesh
from megalite.distributed.transfer import moved
from megalite.layers.layer import Initial
from megalite.layers.linear import ColumnParallelLinear, RowParallelLinear, SelectedLinear
from megalite.layers.products import Matrix, column_products
from megalite.models.config import ModelConfig
from megalite.models.context import Context
from megalite.models.norm import Norm
from megalite.ops import AttentionOptions, Dropout, RowIntervals, attention


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


class _Heads(nn.Module):
    """The weights of attention: query, key, value, output; and attending with them."""

    def __init__(self, config: ModelConfig, mesh: Mesh, name: str) -> None:
        """Declare the weights.

        Args:
            config: of the model.
            mesh: the mesh.
            name: of this layer in the model; its cache and dropout go by it.
        """
        super().__init__()
        heads, groups, width = config.num_heads, config.kv_heads, config.head_dim
        size, bias = config.hidden_size, config.qkv_bias
        inner = heads * width
        query = Initial(config.deviation("query", size, inner))
        output = Initial(config.deviation("attention_output", inner, size, adds_to_residual=True))
        self.config, self.mesh, self.name = config, mesh, name
        self.layout = HeadLayout.of(heads, groups, mesh.tp)
        self.query = ColumnParallelLinear(mesh, (heads, width), size, query, bias)
        self.key = self._key_value(mesh, (groups, width), "key")
        self.value = self._key_value(mesh, (groups, width), "value")
        self.output = RowParallelLinear(mesh, (heads, width), size, output, config.attention_bias)
        self.query_norm: Norm | None = None
        self.key_norm: Norm | None = None
        if config.query_key_norm:
            self.query_norm = Norm(config, mesh, width, of_heads=True)
            self.key_norm = Norm(config, mesh, width, of_heads=True)

    def _key_value(
        self, mesh: Mesh, out: tuple[int, int], role: str
    ) -> ColumnParallelLinear | SelectedLinear:
        size, bias = self.config.hidden_size, self.config.qkv_bias
        std = Initial(self.config.deviation(role, size, out[0] * out[1]))
        if self.layout.split:
            return ColumnParallelLinear(mesh, out, size, std, bias)
        linear = SelectedLinear(mesh, out, size, std, bias)
        linear.bounds = self.layout.groups
        return linear

    def _attended(
        self, qkv: tuple[Tensor, Tensor, Tensor], context: Context, mask: RowIntervals
    ) -> Tensor:
        """The output's part of a sum, [B, S, D]{tp}, of [B, S, N/tp, H] and [B, S, G/tp, H]."""
        (q, k, v), bias = qkv, context.bias
        if q.shape[2] == 0:
            unused = k.sum() + v.sum() + (0.0 if bias is None else bias.sum())
            return self.output.partial(q, context.dropout) + 0.0 * unused
        k, v = self._of_queries(k, v)
        options, cache = self._options(context), context.cache
        if cache is None:
            attended = attention(q, k, v, mask, bias, options)
        else:
            attended = cache.attend(self.name, (q, k, v), mask, bias, options)
        return self.output.partial(attended, context.dropout)

    def _of_queries(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as local query heads read them: those of a group side by side."""
        if self.layout.expand is None:
            return k, v
        places = moved(torch.tensor(self.layout.expand), k.device)
        return k.index_select(2, places), v.index_select(2, places)

    def _options(self, context: Context) -> AttentionOptions:
        scale, p, head = self.config.scale, self.config.attention_dropout, self.layout.queries[0]
        random, cap = context.dropout, self.config.score_cap
        if random is None or p == 0.0:
            return AttentionOptions(scale, head_offset=head, score_cap=cap)
        seed = random.site_seed(self.name)
        return AttentionOptions(scale, p, seed, random.sample_ids, head, cap)


class Attention(_Heads):
    """Attention of a stream to itself."""

    def __init__(self, config: ModelConfig, mesh: Mesh, name: str, window: int = 0) -> None:
        """Declare the weights; ``window`` is what its rows see of their stream, 0 all."""
        super().__init__(config, mesh, name)
        self.window = window

    def matrices(self, random: Dropout | None = None) -> list[Matrix]:
        """What multiplies the input: query, key, value.

        A block may multiply them together with another sub-layer's that reads the same input, so
        that both enter the region that is split over tp by one collective. ``random`` is the
        adapters' dropout in this pass.
        """
        return [layer.matrix(random) for layer in (self.query, self.key, self.value)]

    def forward(
        self, x: Tensor, context: Context, shared: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Attend to the stream's own rows.

        Args:
            x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
            context: masks, tables, bias, dropout and cache of the batch.
            shared: ``x`` times :meth:`matrices`, [B, S, N/tp, H] and twice [B, S, G/tp, H], where
                the block has made them together with another sub-layer's; it then sums up both.

        Returns:
            The shape of ``x``; with ``shared`` this process's part of a sum, [B, S, D]{tp}, and
            without the output's bias.
        """
        if shared is not None:
            return self._to_itself(shared, context)
        matrices = self.matrices(context.dropout)
        products = column_products(x, matrices, self.mesh, context.length)
        return self.output.finish(self._to_itself(products, context))

    def _to_itself(self, products: Sequence[Tensor], context: Context) -> Tensor:
        interleaved = self.config.rope_interleaved
        query, key, v = products
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        is_windowed = self.window > 0
        q, k = (context.rotate(x, interleaved, is_windowed) for x in (query, key))
        mask = context.mask.narrowed(self.window, context.looks_both_ways)
        return self._attended((q, k, v), context, mask)


class CrossAttention(_Heads):
    """Attention of the decoder's rows to the encoder's."""

    def forward(self, x: Tensor, context: Context, memory: Tensor | None) -> Tensor:
        """Attend to the encoder's rows.

        Args:
            x: [B, S, D], or [B, S/tp, D] under sequence parallelism.
            context: masks, dropout and cache of the batch.
            memory: [B, Se, D] on all of tp; None where the cache knows its keys and values.

        Returns:
            The shape of ``x``.
        """
        assert context.cross is not None
        random = context.dropout
        (q,) = column_products(x, [self.query.matrix(random)], self.mesh, context.length)

        if self.query_norm is not None:
            q = self.query_norm(q)
        make = partial(self._keys_values, memory, random)
        return self.output.finish(self._attended_to(q, make, context, context.cross))

    def keep(self, context: Context, memory: Tensor | None) -> None:
        """Let the cache keep the encoder's keys and values; no row attends to them yet."""
        first, last = self.layout.queries
        assert context.cross is not None and memory is not None
        q = memory.new_empty(len(memory), 0, last - first, self.config.head_dim)
        make = partial(self._keys_values, memory, context.dropout)
        self._attended_to(q, make, context, context.cross)

    def _keys_values(self, memory: Tensor | None, random: Dropout | None) -> tuple[Tensor, Tensor]:
        key, value = self.key(memory, random), self.value(memory, random)
        return key if self.key_norm is None else self.key_norm(key), value

    def _attended_to(
        self,
        q: Tensor,
        make: Callable[[], tuple[Tensor, Tensor]],
        context: Context,
        mask: RowIntervals,
    ) -> Tensor:
        """The output's part of a sum, [B, S, D]{tp}; ``make`` gives [B, Se, G/tp, H] twice."""
        options, cache = self._options(context), context.cache
        if cache is not None and q.shape[2]:
            attended = cache.attend_to(
                self.name, q, lambda: self._of_queries(*make()), mask, options
            )
            return self.output.partial(attended)
        k, v = make() if cache is None else (q, q)
        if q.shape[2] == 0:
            return self.output.partial(q, context.dropout) + 0.0 * (k.sum() + v.sum())
        attended = attention(q, *self._of_queries(k, v), mask, None, options)
        return self.output.partial(attended, context.dropout)
