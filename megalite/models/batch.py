"""What flows from data to a model: token streams, row intervals and targets."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

IGNORE = -100
_FILL = {"labels": IGNORE}


@dataclass(frozen=True)
class Batch:
    """A micro-batch of rows; a row is one sample or several packed ones.

    ``tokens`` is the decoder's input and ``labels`` the target of each row, already shifted. Row
    i of the decoder attends to its own rows ``[start_i, end_i)`` and, with an encoder, to its rows
    ``[cross_start_i, cross_end_i)``. Padding rows have start = end and label ``IGNORE``.

    Attributes:
        tokens: [B, S] int64.
        labels: [B, S] int64, ``IGNORE`` where a row has no target.
        positions: [B, S] int32, or [B, S, 2] for two position axes (ChatGLM).
        start: [B, S] int32.
        end: [B, S] int32.
        sample_ids: [B] int64, index of each row in the order of samples; dropout depends on it.
        weights: [B, S] fp32 weight of each target, or None for 1.
        encoder_tokens: [B, Se] int64, or None for a decoder alone.
        encoder_positions: [B, Se] int32.
        encoder_start: [B, Se] int32.
        encoder_end: [B, Se] int32.
        cross_start: [B, S] int32.
        cross_end: [B, S] int32.
    """

    tokens: Tensor
    labels: Tensor
    positions: Tensor
    start: Tensor
    end: Tensor
    sample_ids: Tensor
    weights: Tensor | None = None
    encoder_tokens: Tensor | None = None
    encoder_positions: Tensor | None = None
    encoder_start: Tensor | None = None
    encoder_end: Tensor | None = None
    cross_start: Tensor | None = None
    cross_end: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """This batch with every tensor on ``device``."""
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **moved)

    def select(self, rows: Tensor) -> "Batch":
        """The batch of these rows, [B'] int64, some perhaps several times."""
        chosen = {
            f.name: value.index_select(0, rows)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }
        return replace(self, **chosen)

    def padded(self, length: int, encoder_length: int) -> "Batch":
        """The batch with rows of padding behind each stream, up to these lengths."""
        longer = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or f.name == "sample_ids":
                continue
            spare = (encoder_length if f.name.startswith("encoder") else length) - value.shape[1]
            block = value.new_full((value.shape[0], spare, *value.shape[2:]), _FILL.get(f.name, 0))
            longer[f.name] = torch.cat((value, block), 1)
        return replace(self, **longer)

    @property
    def num_targets(self) -> int:
        """Number of rows that have a target (reads the labels: a host sync on a GPU)."""
        return int((self.labels != IGNORE).sum())
