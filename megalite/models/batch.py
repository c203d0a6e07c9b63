"""What flows from data to a model: streams of tokens, row intervals and targets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megalite.distributed.transfer import moved
from megalite.ops import RowIntervals
from megalite.ops.vocabulary import IGNORE, labelled_rows


def _longer(x: Tensor, length: int, fill: int = 0) -> Tensor:
    """[B, S, ...] with rows of ``fill`` behind, up to ``length``."""
    block = x.new_full((x.shape[0], length - x.shape[1], *x.shape[2:]), fill)
    return torch.cat((x, block), 1)


@dataclass(frozen=True)
class Stream:
    """The tokens that an encoder or a decoder reads, and what each row may attend to.

    Attributes:
        tokens: [B, S] int64.
        positions: [B, S] int32, or [B, S, 2] for two position axes (ChatGLM).
        mask: row intervals over the stream's own keys: its S rows or, where it continues a
            cache, the cache's rows and these. Padding rows have start = end.
    """

    tokens: Tensor
    positions: Tensor
    mask: RowIntervals

    @property
    def length(self) -> int:
        """Rows, S."""
        return self.tokens.shape[1]

    def to(self, device: torch.device | str) -> "Stream":
        """This stream on ``device``."""
        return Stream(
            moved(self.tokens, device), moved(self.positions, device), self.mask.to(device)
        )

    def select(self, rows: Tensor) -> "Stream":
        """The stream of these sequences, [B'] int64."""
        return Stream(
            self.tokens.index_select(0, rows),
            self.positions.index_select(0, rows),
            self.mask.select(rows),
        )

    @classmethod
    def joined(cls, parts: Sequence["Stream"]) -> "Stream":
        """The sequences of several streams of one length, one after another."""
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.positions for part in parts]),
            RowIntervals.joined([part.mask for part in parts]),
        )

    def piece(self, first: int, last: int) -> "Stream":
        """Rows [first, last) of a stream that is read in pieces; a cache has those before them."""
        positions, mask = self.positions[:, first:last], self.mask.piece(first, last, last)
        return Stream(self.tokens[:, first:last], positions, mask)

    def padded(self, length: int) -> "Stream":
        """This stream with padding behind, up to ``length`` rows."""
        return Stream(
            _longer(self.tokens, length),
            _longer(self.positions, length),
            self.mask.padded(length, length),
        )


@dataclass(frozen=True)
class Batch:
    """A micro-batch of sequences; a sequence is one sample or several packed ones.

    Attributes:
        decoder: what the decoder reads.
        labels: [B, S] int64 target of each decoder row, already shifted; ``IGNORE`` where it has
            none.
        sample_ids: [B] int64, number of each sequence in the order of samples; dropout depends on
            it.
        weights: [B, S] fp32 weight of each target, or None for 1.
        encoder: what the encoder reads; None for a decoder alone, or where a cache has it.
        cross: row intervals of the decoder's rows over the encoder's, or None.
        rows: int64, numbers of the B*S rows that have a target, where they were found before the
            batch left the host; None: whoever needs them looks for them, and waits for a GPU.
    """

    decoder: Stream
    labels: Tensor
    sample_ids: Tensor
    weights: Tensor | None = None
    encoder: Stream | None = None
    cross: RowIntervals | None = None
    rows: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """This batch with every tensor on ``device``; see :func:`moved`."""
        if self.labels.device == torch.device(device):
            return self
        rows = labelled_rows(self.labels.flatten()) if self.rows is None else self.rows
        return Batch(
            self.decoder.to(device),
            moved(self.labels, device),
            moved(self.sample_ids, device),
            None if self.weights is None else moved(self.weights, device),
            None if self.encoder is None else self.encoder.to(device),
            None if self.cross is None else self.cross.to(device),
            moved(rows, device),
        )

    def select(self, rows: Tensor) -> "Batch":
        """The batch of these sequences, [B'] int64, some perhaps several times."""
        return Batch(
            self.decoder.select(rows),
            self.labels.index_select(0, rows),
            self.sample_ids.index_select(0, rows),
            None if self.weights is None else self.weights.index_select(0, rows),
            None if self.encoder is None else self.encoder.select(rows),
            None if self.cross is None else self.cross.select(rows),
        )

    def without_targets(self) -> "Batch":
        """The batch with nothing to learn: it runs, and weighs nothing."""
        return replace(self, labels=torch.full_like(self.labels, IGNORE), rows=None)

    def piece(self, first: int, last: int) -> "Batch":
        """The decoder's rows [first, last) of a batch without targets that is read in pieces.

        A cache has those before them; an encoder runs with the first piece.
        """
        cross = self.cross
        return Batch(
            self.decoder.piece(first, last),
            self.labels[:, first:last],
            self.sample_ids,
            encoder=self.encoder if first == 0 else None,
            cross=None if cross is None else cross.piece(first, last, cross.num_keys),
        )

    def padded(self, length: int, encoder_length: int) -> "Batch":
        """The batch with padding behind each stream, up to these lengths."""
        rows, width = self.rows, self.decoder.length
        return replace(
            self,
            decoder=self.decoder.padded(length),
            labels=_longer(self.labels, length, IGNORE),
            weights=None if self.weights is None else _longer(self.weights, length),
            encoder=None if self.encoder is None else self.encoder.padded(encoder_length),
            cross=None if self.cross is None else self.cross.padded(length, encoder_length),
            rows=None if rows is None else rows // width * length + rows % width,
        )

    @classmethod
    def joined(cls, batches: Sequence["Batch"]) -> "Batch":
        """The sequences of several batches one after another, padded to the longest.

        Args:
            batches: all with or all without an encoder's stream; without weights.
        """
        length = max(batch.decoder.length for batch in batches)
        encoders = [batch.encoder.length for batch in batches if batch.encoder is not None]
        padded = [batch.padded(length, max(encoders, default=0)) for batch in batches]
        streams = [batch.encoder for batch in padded if batch.encoder is not None]
        crosses = [batch.cross for batch in padded if batch.cross is not None]
        return cls(
            Stream.joined([batch.decoder for batch in padded]),
            torch.cat([batch.labels for batch in padded]),
            torch.cat([batch.sample_ids for batch in padded]),
            None,
            Stream.joined(streams) if streams else None,
            RowIntervals.joined(crosses) if crosses else None,
        )

    @property
    def num_targets(self) -> int:
        """Number of rows that have a target (reads the labels: a host sync on a GPU)."""
        return int((self.labels != IGNORE).sum())
