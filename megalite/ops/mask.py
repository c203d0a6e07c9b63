"""A mask is two integers a query row: row i may attend to keys [start_i, end_i)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from megalite.distributed.transfer import moved
from megalite.errors import ShapeError
from megalite.ops.backends import kernels
from megalite.ops.mask_plan import plan_reference


@dataclass(frozen=True)
class RowIntervals:
    """The mask of a batch, and the tile plan that every layer shares.

    Args:
        start: int32 [B, Sq], first key of each query row.
        end: int32 [B, Sq], one past the last; a row with start = end attends to nothing.
        num_keys: number of keys K; 0 <= start <= end <= K.
    """

    start: Tensor
    end: Tensor
    num_keys: int

    def __post_init__(self) -> None:
        for name, value in (("start", self.start), ("end", self.end)):
            if value.dtype != torch.int32 or value.dim() != 2:
                raise ShapeError(
                    f"RowIntervals {name}: must be int32 [B, Sq], "
                    f"came {value.dtype} {list(value.shape)}"
                )
        if self.start.shape != self.end.shape or self.start.device != self.end.device:
            raise ShapeError(
                f"RowIntervals: start and end must agree in shape and device, came "
                f"{list(self.start.shape)} on {self.start.device} and "
                f"{list(self.end.shape)} on {self.end.device}"
            )

    @cached_property
    def plan(self) -> tuple[Tensor, Tensor]:
        """(rows, keys) of :func:`plan_reference`, made once on first use.

        Raises:
            ShapeError: on a CPU, where some start > end or end > num_keys.
        """
        ops = kernels(self.start)
        if ops is None:
            self._check_values()
            return plan_reference(self.start, self.end, self.num_keys)
        rows, keys = ops.mask_plan(self.start, self.end, self.num_keys)
        return rows, keys

    def _check_values(self) -> None:
        if self.start.device.type != "cpu" or self.start.numel() == 0:
            return
        bad = (self.start < 0) | (self.start > self.end) | (self.end > self.num_keys)
        if bool(bad.any()):
            batch, row = bad.nonzero()[0].tolist()
            raise ShapeError(
                f"attention start, end: 0 <= start <= end <= {self.num_keys} keys must hold, came "
                f"[{int(self.start[batch, row])}, {int(self.end[batch, row])}) "
                f"in row {row} of sequence {batch}"
            )

    def materialize(self) -> Tensor:
        """The dense mask, bool [B, Sq, K], true where attention is allowed; for tests."""
        key = torch.arange(self.num_keys, device=self.start.device)
        return (key >= self.start[..., None]) & (key < self.end[..., None])

    @property
    def is_empty(self) -> Tensor:
        """Rows that attend to nothing, such as padding: bool [B, Sq]."""
        return self.start >= self.end

    def to(self, device: torch.device | str) -> "RowIntervals":
        """The same mask on another device."""
        if self.start.device == torch.device(device):
            return self
        return RowIntervals(moved(self.start, device), moved(self.end, device), self.num_keys)

    def select(self, sequences: Tensor) -> "RowIntervals":
        """The mask of these sequences, [B'] int64, some perhaps several times."""
        start, end = (x.index_select(0, sequences) for x in (self.start, self.end))
        return RowIntervals(start, end, self.num_keys)

    @cached_property
    def _narrow(self) -> "dict[tuple[int, bool], RowIntervals]":
        return {}

    def narrowed(self, width: int, both_ways: bool = False) -> "RowIntervals":
        """The mask within a window, made once: rows see their own key and those right before it.

        The last row stands at the last key, as in a stream that is whole or continues a cache. What
        a row sees behind its own key, as inside of a prefix, stays.

        Args:
            width: keys, a row's own the last of them; 0 is no window.
            both_ways: ``width`` keys on either side of its own instead.
        """
        if not width:
            return self
        key = (width, both_ways)
        if key not in self._narrow:
            queries = self.start.shape[1]
            own = torch.arange(queries, dtype=torch.int32, device=self.start.device)
            own = own + (self.num_keys - queries)
            end = torch.minimum(self.end, own + width + 1) if both_ways else self.end
            first = own - width if both_ways else own - width + 1
            end = torch.maximum(end, self.start)
            start = torch.minimum(torch.maximum(self.start, first), end)
            self._narrow[key] = RowIntervals(start, end, self.num_keys)
        return self._narrow[key]

    @classmethod
    def joined(cls, parts: Sequence["RowIntervals"]) -> "RowIntervals":
        """The masks of several batches of the same rows and keys, one after another."""
        start, end = (torch.cat([getattr(p, name) for p in parts]) for name in ("start", "end"))
        return cls(start, end, parts[0].num_keys)

    def last_row(self) -> "RowIntervals":
        """The mask of each sequence's last row alone."""
        return RowIntervals(self.start[:, -1:], self.end[:, -1:], self.num_keys)

    def piece(self, first: int, last: int, num_keys: int) -> "RowIntervals":
        """The mask of rows [first, last), which see none of the keys behind ``num_keys``."""
        return RowIntervals(self.start[:, first:last], self.end[:, first:last], num_keys)

    def padded(self, queries: int, num_keys: int) -> "RowIntervals":
        """The mask with empty rows behind, up to ``queries``, over ``num_keys`` keys."""
        spare = queries - self.start.shape[1]
        start, end = (torch.nn.functional.pad(x, (0, spare)) for x in (self.start, self.end))
        return RowIntervals(start, end, num_keys)


def _rows(batch: int, queries: int) -> Tensor:
    return torch.arange(queries, dtype=torch.int32).expand(batch, queries)


def full(batch: int, queries: int, keys: int) -> RowIntervals:
    """Every row sees every key."""
    start = torch.zeros(batch, queries, dtype=torch.int32)
    return RowIntervals(start, torch.full_like(start, keys), keys)


def causal(batch: int, queries: int, keys: int | None = None) -> RowIntervals:
    """Row i sees keys up to its own; the last row is aligned with the last key."""
    keys = queries if keys is None else keys
    end = (_rows(batch, queries) + (keys - queries + 1)).clamp(min=0)
    return RowIntervals(torch.zeros_like(end), end, keys)


def prefix(prefix_lengths: Tensor, queries: int) -> RowIntervals:
    """Rows see the whole prefix, and rows after it are causal.

    Args:
        prefix_lengths: int [B], tokens of each prefix.
        queries: number of rows, and of keys.
    """
    end = _rows(prefix_lengths.numel(), queries) + 1
    end = torch.maximum(end, prefix_lengths.to(torch.int32)[:, None]).clamp(max=queries)
    return RowIntervals(torch.zeros_like(end), end, queries)


def window(batch: int, queries: int, width: int) -> RowIntervals:
    """Row i sees itself and the ``width - 1`` keys before it."""
    end = _rows(batch, queries) + 1
    return RowIntervals((end - width).clamp(min=0), end, queries)


def packed(lengths: list[list[int]], queries: int, is_causal: bool = True) -> RowIntervals:
    """Documents side by side in each row, each seeing only itself; what is left is padding.

    Args:
        lengths: tokens of each document, a list for each sequence of the batch.
        queries: tokens of a sequence.
        is_causal: causal inside a document, or full.
    """
    start = torch.zeros(len(lengths), queries, dtype=torch.int32)
    end = torch.zeros_like(start)
    for b, documents in enumerate(lengths):
        at = 0
        for length in documents:
            stop = at + length
            start[b, at:stop] = at
            end[b, at:stop] = (
                torch.arange(at + 1, stop + 1, dtype=torch.int32) if is_causal else stop
            )
            at = stop
        if at > queries:
            raise ShapeError(f"packed: documents of sequence {b} have {at} tokens, row {queries}")
    return RowIntervals(start, end, queries)


def padding(lengths: Tensor, queries: int) -> RowIntervals:
    """The first ``lengths[b]`` tokens see each other; rows after them see nothing."""
    length = lengths.to(torch.int32)[:, None]
    end = torch.where(_rows(lengths.numel(), queries) < length, length, 0)
    return RowIntervals(torch.zeros_like(end), end, queries)


def cross(key_lengths: Tensor, queries: int, keys: int) -> RowIntervals:
    """Every row sees the first ``key_lengths[b]`` of the other stream's keys."""
    end = key_lengths.to(torch.int32)[:, None].expand(-1, queries).contiguous()
    return RowIntervals(torch.zeros_like(end), end, keys)
