"""Keys and values of the rows that a decoder has read, one buffer per layer."""

from collections.abc import Callable

from torch import Tensor

from megalite.ops import AttentionOptions, RowIntervals, attention

KeysValues = tuple[Tensor, Tensor]


class Cache:
    """The KV cache of one batch of answers.

    An attention layer calls :meth:`attend` with the queries, keys and values of its new rows; a
    cross-attention layer calls :meth:`attend_to`. Row intervals of the batch then index the cache's
    rows. After a forward pass the owner calls :meth:`advance`.

    Attributes:
        length: rows that are complete in every layer; new rows are written after them.
        capacity: most rows.
    """

    def __init__(self, capacity: int) -> None:
        """Make an empty cache; buffers are allocated when a layer first writes."""
        self.capacity = capacity
        self.length = 0
        self._layers: dict[str, KeysValues] = {}
        self._fixed: dict[str, KeysValues] = {}

    def attend(
        self,
        layer: str,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: RowIntervals,
        bias: Tensor | None,
        options: AttentionOptions,
    ) -> Tensor:
        """See :class:`megalite.models.context.KeyValueCache`."""
        q, k, v = qkv
        return attention(q, *self.extend(layer, k, v), mask, bias, options)

    def attend_to(
        self,
        layer: str,
        q: Tensor,
        make: Callable[[], KeysValues],
        mask: RowIntervals,
        options: AttentionOptions,
    ) -> Tensor:
        """See :class:`megalite.models.context.KeyValueCache`."""
        return attention(q, *self.once(layer, make), mask, None, options)

    def extend(self, layer: str, keys: Tensor, values: Tensor) -> KeysValues:
        """Write new rows of a layer after the complete ones.

        Args:
            layer: the layer's name.
            keys: [B, S, G, H].
            values: [B, S, G, H].

        Returns:
            Views of all keys and values so far, each [B, length + S, G, H].
        """
        end = self.length + keys.shape[1]
        assert end <= self.capacity, f"{layer}: {end} rows in a cache of {self.capacity}"
        if layer not in self._layers:
            batch, _, groups, head = keys.shape
            shape = (batch, self.capacity, groups, head)
            self._layers[layer] = (keys.new_empty(shape), values.new_empty(shape))
        for buffer, new in zip(self._layers[layer], (keys, values), strict=True):
            buffer[:, self.length : end] = new
        all_keys, all_values = self._layers[layer]
        return all_keys[:, :end], all_values[:, :end]

    def once(self, layer: str, make: Callable[[], KeysValues]) -> KeysValues:
        """Keys and values that stay the same for every new row, made at the first call."""
        if layer not in self._fixed:
            self._fixed[layer] = make()
        return self._fixed[layer]

    def advance(self, rows: int) -> None:
        """Count ``rows`` new rows as complete in every layer."""
        self.length += rows

    def select(self, sequences: Tensor) -> None:
        """Keep these sequences of the batch, some perhaps several times.

        Args:
            sequences: [B'] int64 indices.
        """
        for name, (keys, values) in self._layers.items():
            seen = keys[:, : self.length], values[:, : self.length]
            keys, values = (self._grown(part.index_select(0, sequences)) for part in seen)
            self._layers[name] = keys, values
        for name, (keys, values) in self._fixed.items():
            self._fixed[name] = keys.index_select(0, sequences), values.index_select(0, sequences)

    def _grown(self, part: Tensor) -> Tensor:
        buffer = part.new_empty(part.shape[0], self.capacity, *part.shape[2:])
        buffer[:, : self.length] = part
        return buffer
