"""One sample as numpy arrays, how several share a row, and how rows become a Batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megalite.errors import DataError
from megalite.models.batch import IGNORE, Batch

Array = np.ndarray


@dataclass(frozen=True)
class Example:
    """The fields of a Batch for one row, without B; see ``models/batch.py``.

    Attributes:
        tokens: int64 [S].
        labels: int64 [S], ``IGNORE`` where a row has no target.
        start: int32 [S] row intervals.
        end: int32 [S].
        positions: int32 [S] or [S, 2].
        weights: fp32 [S] of each target, or None for 1.
        encoder_tokens: int64 [Se], or None for a decoder alone.
        encoder_start: int32 [Se].
        encoder_end: int32 [Se].
        encoder_positions: int32 [Se].
        cross_start: int32 [S] row intervals over the encoder's rows.
        cross_end: int32 [S].
    """

    tokens: Array
    labels: Array
    start: Array
    end: Array
    positions: Array
    weights: Array | None = None
    encoder_tokens: Array | None = None
    encoder_start: Array | None = None
    encoder_end: Array | None = None
    encoder_positions: Array | None = None
    cross_start: Array | None = None
    cross_end: Array | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def encoder_length(self) -> int:
        """Rows of the encoder stream."""
        return 0 if self.encoder_tokens is None else len(self.encoder_tokens)


def decoder_example(
    tokens: Array, labels: Array, prefix: int = 0, positions: Array | None = None
) -> Example:
    """An example of a decoder alone whose first ``prefix`` rows see each other both ways.

    Args:
        tokens: [S].
        labels: [S].
        prefix: rows.
        positions: int32 [S] or [S, 2]; None counts from 0.
    """
    count = len(tokens)
    rows = np.arange(count, dtype=np.int32)
    return Example(
        tokens=np.asarray(tokens, dtype=np.int64),
        labels=np.asarray(labels, dtype=np.int64),
        start=np.zeros(count, dtype=np.int32),
        end=np.maximum(rows + 1, np.int32(prefix)),
        positions=rows if positions is None else positions,
    )


def encoder_decoder_example(source: Array, tokens: Array, labels: Array) -> Example:
    """An example of an encoder that reads ``source`` and a causal decoder that reads all of it."""
    decoder = decoder_example(tokens, labels)
    count, rows = len(source), len(tokens)
    return Example(
        **{name: getattr(decoder, name) for name in _DECODER[:5]},
        encoder_tokens=np.asarray(source, dtype=np.int64),
        encoder_start=np.zeros(count, dtype=np.int32),
        encoder_end=np.full(count, count, dtype=np.int32),
        encoder_positions=np.arange(count, dtype=np.int32),
        cross_start=np.zeros(rows, dtype=np.int32),
        cross_end=np.full(rows, count, dtype=np.int32),
    )


_DECODER = ("tokens", "labels", "start", "end", "positions", "weights", "cross_start", "cross_end")
_ENCODER = ("encoder_tokens", "encoder_start", "encoder_end", "encoder_positions")
_FILL = {"labels": IGNORE}


def pack(examples: Sequence[Example]) -> Example:
    """Put examples side by side in one row; none sees another."""
    if len(examples) == 1:
        return examples[0]
    at, encoder_at = 0, 0
    columns: dict[str, list[Array]] = {name: [] for name in (*_DECODER, *_ENCODER)}
    weighted = any(example.weights is not None for example in examples)
    for example in examples:
        shifts = {"start": at, "end": at, "encoder_start": encoder_at, "encoder_end": encoder_at}
        shifts |= {"cross_start": encoder_at, "cross_end": encoder_at}
        for name, column in columns.items():
            value = getattr(example, name)
            if name == "weights" and weighted and value is None:
                value = np.ones(len(example), dtype=np.float32)
            if value is not None:
                column.append(value + np.asarray(shifts.get(name, 0), dtype=value.dtype))
        at += len(example)
        encoder_at += example.encoder_length
    joined = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
    return Example(**joined)


def collate(
    examples: Sequence[Example],
    sample_ids: Sequence[int],
    length: int = 0,
    encoder_length: int = 0,
    pad_id: int = 0,
) -> Batch:
    """Pad rows on the right and stack them.

    Args:
        examples: B of them, all with or all without an encoder stream.
        sample_ids: their numbers in the run's order.
        length: S; 0 is the longest example.
        encoder_length: Se; 0 is the longest.
        pad_id: stands in padding.

    Raises:
        DataError: an example is longer than ``length``.
    """
    length = length or max(len(example) for example in examples)
    encoder_length = encoder_length or max(example.encoder_length for example in examples)
    fields: dict[str, torch.Tensor] = {}
    for names, size in ((_DECODER, length), (_ENCODER, encoder_length)):
        for name in names:
            rows = [getattr(example, name) for example in examples]
            if rows[0] is None:
                continue
            fill = pad_id if name.endswith("tokens") else _FILL.get(name, 0)
            fields[name] = torch.from_numpy(np.stack([_padded(row, size, fill) for row in rows]))
    return Batch(sample_ids=torch.tensor(list(sample_ids), dtype=torch.int64), **fields)


def _padded(row: Array, size: int, fill: int) -> Array:
    if len(row) > size:
        raise DataError(f"a sample has {len(row)} tokens, a row at most {size}: cut or raise it")
    out = np.full((size, *row.shape[1:]), fill, dtype=row.dtype)
    out[: len(row)] = row
    return out
