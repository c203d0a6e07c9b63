"""Examples as numpy arrays, how several share a sequence, and how sequences become a Batch.

An ``Example`` mirrors one sequence of ``models/batch.py``: the same fields without B.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megalite.data.arrays import Float32, Int32, Int64
from megalite.errors import DataError
from megalite.models.batch import IGNORE, Batch, Stream
from megalite.ops import RowIntervals

Scalar = TypeVar("Scalar", bound=np.generic)


@dataclass(frozen=True)
class Intervals:
    """Row intervals: row i may attend to keys [start_i, end_i).

    Attributes:
        start: int32 [S].
        end: int32 [S].
    """

    start: Int32
    end: Int32

    def shifted(self, keys: int) -> "Intervals":
        """The intervals moved ``keys`` further on."""
        return Intervals(self.start + np.int32(keys), self.end + np.int32(keys))

    def cut(self, rows: int) -> "Intervals":
        """The first rows, over as many keys."""
        return Intervals(self.start[:rows], np.minimum(self.end[:rows], np.int32(rows)))

    @classmethod
    def full(cls, rows: int, keys: int) -> "Intervals":
        """Every row sees every key."""
        return cls(np.zeros(rows, dtype=np.int32), np.full(rows, keys, dtype=np.int32))

    @classmethod
    def causal(cls, rows: int, prefix: int = 0) -> "Intervals":
        """A row sees itself and those before it, the first ``prefix`` rows each other both ways."""
        end = np.maximum(np.arange(1, rows + 1, dtype=np.int32), np.int32(prefix))
        return cls(np.zeros(rows, dtype=np.int32), end)

    @classmethod
    def joined(cls, parts: Sequence["Intervals"]) -> "Intervals":
        """Rows one after another."""
        return cls(
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.end for part in parts]),
        )


@dataclass(frozen=True)
class Tokens:
    """The stream that an encoder or a decoder reads.

    Attributes:
        tokens: int64 [S].
        positions: int32 [S] or [S, 2].
        mask: row intervals over these rows.
    """

    tokens: Int64
    positions: Int32
    mask: Intervals

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Example:
    """A document or conversation as a model reads it, or several that share a sequence.

    Attributes:
        decoder: what the decoder reads.
        labels: int64 [S], ``IGNORE`` where a row has no target.
        weights: fp32 [S] of each target, or None for 1.
        encoder: what the encoder reads, or None for a decoder alone.
        cross: row intervals of the decoder's rows over the encoder's, or None.
    """

    decoder: Tokens
    labels: Int64
    weights: Float32 | None = None
    encoder: Tokens | None = None
    cross: Intervals | None = None

    def __len__(self) -> int:
        return len(self.decoder)

    @property
    def encoder_length(self) -> int:
        """Rows of the encoder's stream."""
        return 0 if self.encoder is None else len(self.encoder)


def decoder_example(
    tokens: Int64, labels: Int64, prefix: int = 0, positions: Int32 | None = None
) -> Example:
    """An example of a decoder alone whose first ``prefix`` rows see each other both ways.

    Args:
        tokens: [S].
        labels: [S].
        prefix: how many rows.
        positions: int32 [S] or [S, 2]; None counts from 0.
    """
    count = len(tokens)
    if positions is None:
        positions = np.arange(count, dtype=np.int32)
    decoder = Tokens(np.asarray(tokens, dtype=np.int64), positions, Intervals.causal(count, prefix))
    return Example(decoder, np.asarray(labels, dtype=np.int64))


def encoder_decoder_example(source: Int64, tokens: Int64, labels: Int64) -> Example:
    """An example of an encoder that reads ``source`` and a causal decoder that sees all of it."""
    alone, count = decoder_example(tokens, labels), len(source)
    rows = np.arange(count, dtype=np.int32)
    encoder = Tokens(np.asarray(source, dtype=np.int64), rows, Intervals.full(count, count))
    return Example(
        alone.decoder, alone.labels, encoder=encoder, cross=Intervals.full(len(tokens), count)
    )


def cut_rows(example: Example, rows: int) -> Example:
    """The first rows of a decoder's example."""
    read = example.decoder
    decoder = Tokens(read.tokens[:rows], read.positions[:rows], read.mask.cut(rows))
    return Example(decoder, example.labels[:rows])


def pack(examples: Sequence[Example]) -> Example:
    """Put examples one after another into one sequence; none sees another."""
    if len(examples) == 1:
        return examples[0]
    ends = np.cumsum([[len(example), example.encoder_length] for example in examples], axis=0)
    places = [(0, 0), *((int(at), int(encoder_at)) for at, encoder_at in ends[:-1])]
    weights = None
    if any(example.weights is not None for example in examples):
        weights = np.concatenate([_weights(example) for example in examples])
    encoders, crosses = [example.encoder for example in examples], []
    for example, (_, at) in zip(examples, places, strict=True):
        crosses += [] if example.cross is None else [example.cross.shifted(at)]
    return Example(
        _joined([example.decoder for example in examples], [at for at, _ in places]),
        np.concatenate([example.labels for example in examples]),
        weights,
        _joined([e for e in encoders if e is not None], [at for _, at in places])
        if crosses
        else None,
        Intervals.joined(crosses) if crosses else None,
    )


def _joined(parts: Sequence[Tokens], places: Sequence[int]) -> Tokens:
    """Streams one after another, each seeing only its own rows."""
    return Tokens(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.positions for part in parts]),
        Intervals.joined([p.mask.shifted(at) for p, at in zip(parts, places, strict=True)]),
    )


def _weights(example: Example) -> Float32:
    if example.weights is None:
        return np.ones(len(example), dtype=np.float32)
    return example.weights


def collate(
    examples: Sequence[Example],
    sample_ids: Sequence[int],
    length: int = 0,
    encoder_length: int = 0,
    pad_id: int = 0,
) -> Batch:
    """Pad sequences on the right and stack them.

    Args:
        examples: B of them, all with or all without an encoder's stream, and weights.
        sample_ids: their numbers in the run's order.
        length: S; 0: of the longest example.
        encoder_length: Se; 0: of the longest.
        pad_id: stands in padding.

    Raises:
        DataError: an example is longer than ``length``.
    """
    length = length or max(len(example) for example in examples)
    encoder_length = encoder_length or max(example.encoder_length for example in examples)
    encoders = [example.encoder for example in examples if example.encoder is not None]
    crosses = [example.cross for example in examples if example.cross is not None]
    weights = [example.weights for example in examples if example.weights is not None]
    return Batch(
        _stream([example.decoder for example in examples], length, pad_id),
        _stacked([example.labels for example in examples], length, IGNORE),
        torch.tensor(list(sample_ids), dtype=torch.int64),
        _stacked(weights, length) if weights else None,
        _stream(encoders, encoder_length, pad_id) if encoders else None,
        _mask(crosses, length, encoder_length) if crosses else None,
    )


def _stream(parts: Sequence[Tokens], length: int, pad_id: int) -> Stream:
    return Stream(
        _stacked([part.tokens for part in parts], length, pad_id),
        _stacked([part.positions for part in parts], length),
        _mask([part.mask for part in parts], length, length),
    )


def _mask(parts: Sequence[Intervals], length: int, keys: int) -> RowIntervals:
    start = _stacked([part.start for part in parts], length)
    return RowIntervals(start, _stacked([part.end for part in parts], length), keys)


def _stacked(parts: Sequence[NDArray[Scalar]], length: int, fill: int = 0) -> Tensor:
    """Arrays [S, ...] as [B, length, ...], with ``fill`` after each."""
    return torch.from_numpy(np.stack([_padded(part, length, fill) for part in parts]))


def _padded(part: NDArray[Scalar], size: int, fill: int) -> NDArray[Scalar]:
    if len(part) > size:
        raise DataError(
            f"an example has {len(part)} tokens, a sequence at most {size}: cut it or raise that"
        )
    out = np.full((size, *part.shape[1:]), fill, dtype=part.dtype)
    out[: len(part)] = part
    return out
