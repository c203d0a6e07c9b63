"""Keys and values of many sequences in blocks: memory is given out by the block and shared.

Source: Kwon et al. 2023, arXiv:2309.06180.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megalite.ops import AttentionOptions, RowIntervals, attention
from megalite.ops.backends import chosen
from megalite.ops.paged_attention import Places, Pools, paged_attention

BLOCK_ROWS = 16  # keys of a block
SPARE = 0  # a block that no sequence has; rows of a pass that stand for nothing use it

KeysValues = tuple[Tensor, Tensor]


def num_blocks(rows: int) -> int:
    """Blocks that hold this many keys."""
    return -(-rows // BLOCK_ROWS)


class Blocks:
    """Blocks of keys and values, one pool a layer; a block is freed when nobody uses it any more.

    Attributes:
        count: blocks of a pool, the spare one among them.
    """

    def __init__(self, count: int) -> None:
        """Have ``count`` blocks besides the spare one; a layer's are allocated when it writes."""
        self.count = count + 1
        self._pools: dict[str, Pools] = {}
        self._free = list(range(count, SPARE, -1))
        self._uses = [0] * self.count

    def take(self, count: int) -> list[int]:
        """Blocks that nobody uses."""
        assert count <= len(self._free), f"{count} blocks of {len(self._free)} that are free"
        blocks = [self._free.pop() for _ in range(count)]
        return self.use(blocks)

    def use(self, blocks: Sequence[int]) -> list[int]:
        """Use blocks together with those who do already."""
        for block in blocks:
            self._uses[block] += 1
        return list(blocks)

    def release(self, blocks: Sequence[int]) -> None:
        """End one use of each."""
        for block in blocks:
            self._uses[block] -= 1
            if self._uses[block] == 0:
                self._free.append(block)

    def copy(self, source: int, target: int) -> None:
        """Write over a block what another holds, in all layers."""
        for pool in (pool for pools in self._pools.values() for pool in pools):
            pool[target] = pool[source]

    def write(self, layer: str, rows: "Rows", keys: Tensor, values: Tensor) -> Pools:
        """Write new keys and values of a layer; give its pools.

        Args:
            layer: its name.
            rows: the place of each.
            keys: [T, G, H].
            values: [T, G, H].
        """
        if layer not in self._pools:
            _, groups, width = keys.shape
            dtype = torch.float32 if _is_widened(keys) else keys.dtype
            shape = self.count, groups, BLOCK_ROWS, width
            self._pools[layer] = Pools(
                keys.new_empty(shape, dtype=dtype), values.new_empty(shape, dtype=dtype)
            )
        pools = self._pools[layer]
        _, groups, width = keys.shape
        lines = rows.of_heads(groups)
        for pool, new in zip(pools, (keys, values), strict=True):
            pool.view(-1, width).index_copy_(0, lines, new.reshape(-1, width).to(pool.dtype))
        return pools

    def read(self, layer: str, rows: "Rows", dtype: torch.dtype) -> KeysValues:
        """Copies of keys and values of one sequence, each [1, T, G, H]."""
        places = rows.blocks, slice(None), rows.rows
        keys, values = (pool[places][None].to(dtype) for pool in self._pools[layer])
        return keys, values

    def __getitem__(self, layer: str) -> Pools:
        """The pools of a layer that has written."""
        return self._pools[layer]

    @property
    def size_bytes(self) -> int:
        """Memory of all layers' pools here."""
        return sum(pool.nbytes for pools in self._pools.values() for pool in pools)


def _is_widened(x: Tensor) -> bool:
    """Whether a kernel reads keys and values of this type as fp32."""
    return chosen(x) == "cpu" and x.dtype in (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Rows:
    """Where new keys stand in the pools of all layers.

    Attributes:
        blocks: int64 [T], the block of each.
        rows: int64 [T], its row in there.
    """

    blocks: Tensor
    rows: Tensor
    _of_heads: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def first(cls, blocks: Sequence[int], count: int, device: torch.device | str) -> "Rows":
        """Of the first ``count`` keys of a sequence in its blocks."""
        row = torch.arange(count)
        places = torch.tensor(list(blocks))[row // BLOCK_ROWS]
        return cls(places.to(device), (row % BLOCK_ROWS).to(device))

    @classmethod
    def last(cls, tables: Tensor, lengths: Tensor) -> "Rows":
        """Of the last key of each sequence: int32 [B, T] blocks, int32 [B] keys."""
        last = lengths.long() - 1
        block = tables.gather(1, (last // BLOCK_ROWS)[:, None])[:, 0]
        return cls(block.long(), last % BLOCK_ROWS)

    def piece(self, first: int, last: int) -> "Rows":
        """Of the keys [first, last) of these."""
        return Rows(self.blocks[first:last], self.rows[first:last])

    def of_heads(self, groups: int) -> Tensor:
        """Lines of a pool as [blocks * G * R, H], all heads of a key together: int64 [T * G]."""
        if groups not in self._of_heads:
            head = torch.arange(groups, device=self.rows.device)
            lines = (self.blocks[:, None] * groups + head) * BLOCK_ROWS + self.rows[:, None]
            self._of_heads[groups] = lines.flatten()
        return self._of_heads[groups]


@dataclass(frozen=True)
class Reading:
    """The cache of a pass that reads one prompt, or a piece of it.

    Attributes:
        own: blocks of the decoder's keys.
        rows: places of this pass's rows in them.
        seen: those of the prompt's rows up to this pass's last; None where it has the first ones.
        cross: blocks of the encoder's keys.
        cross_rows: places of the encoder's rows in them, which come with the first pass.
    """

    own: Blocks
    rows: Rows
    seen: Rows | None
    cross: Blocks
    cross_rows: Rows

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
        self.own.write(layer, self.rows, k[0], v[0])
        if self.seen is not None:
            k, v = self.own.read(layer, self.seen, q.dtype)
        return attention(q, k, v, mask, bias, options)

    def attend_to(
        self,
        layer: str,
        q: Tensor,
        make: Callable[[], KeysValues],
        mask: RowIntervals,
        options: AttentionOptions,
    ) -> Tensor:
        """See :class:`megalite.models.context.KeyValueCache`."""
        if self.seen is None:
            k, v = make()
            self.cross.write(layer, self.cross_rows, k[0], v[0])
            if q.shape[1] == 0:
                return q
        else:
            k, v = self.cross.read(layer, self.cross_rows, q.dtype)
        return attention(q, k, v, mask, None, options)


@dataclass(frozen=True)
class Stepping:
    """The cache of a pass that reads one more token of each of B sequences.

    Attributes:
        own: blocks of the decoder's keys.
        tables: int32 [B, T] of them.
        lengths: int32 [B], keys of each sequence, the new one among them.
        rows: places of the new keys.
        cross: blocks of the encoder's keys.
        cross_tables: int32 [B, Te] of them.
    """

    own: Blocks
    tables: Tensor
    lengths: Tensor
    rows: Rows
    cross: Blocks
    cross_tables: Tensor
    _places: dict[int, tuple[RowIntervals, Places]] = field(default_factory=dict)

    def attend(
        self,
        layer: str,
        qkv: tuple[Tensor, Tensor, Tensor],
        mask: RowIntervals,
        bias: Tensor | None,
        options: AttentionOptions,
    ) -> Tensor:
        """As the protocol; each sequence's last key stands at the last one of the mask."""
        q, k, v = (x[:, 0] for x in qkv)
        pools = self.own.write(layer, self.rows, k, v)
        places = self._once(mask, self._own_places)
        return paged_attention(q, pools, places, bias, options)[:, None]

    def attend_to(
        self,
        layer: str,
        q: Tensor,
        make: Callable[[], KeysValues],
        mask: RowIntervals,
        options: AttentionOptions,
    ) -> Tensor:
        """See :class:`megalite.models.context.KeyValueCache`."""
        places = self._once(mask, self._cross_places)
        return paged_attention(q[:, 0], self.cross[layer], places, None, options)[:, None]

    def _once(self, mask: RowIntervals, make: Callable[[RowIntervals], Places]) -> Places:
        """What all layers with this mask share, made by the first of them."""
        found = self._places.get(id(mask))
        if found is None:  # the mask is kept with them, so that no other one gets its id
            found = self._places[id(mask)] = mask, make(mask)
        return found[1]

    def _own_places(self, mask: RowIntervals) -> Places:
        start = mask.start[:, 0] + (self.lengths - mask.num_keys)
        return Places(self.tables, start, self.lengths, mask.num_keys)

    def _cross_places(self, mask: RowIntervals) -> Places:
        start, end = mask.start[:, 0].contiguous(), mask.end[:, 0].contiguous()
        return Places(self.cross_tables, start, end, mask.num_keys)
