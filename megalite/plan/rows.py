"""What the rows of a sequence see, as a run's data lays them out; no data is read.

An objective makes examples of documents of one length, whose tokens are drawn; their row intervals
are those of training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
import torch

from megalite.data.arrays import Int64
from megalite.data.config import CorpusConfig
from megalite.data.corpus.packed_documents import Room, longest_document
from megalite.data.example import Example, Intervals, decoder_example, encoder_decoder_example
from megalite.data.objectives.choice import choose_objective
from megalite.data.objectives.objective import SHORTEST
from megalite.data.structure import Structure
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.ops import RowIntervals
from megalite.training.metrics.flops import Operations, step_operations

EXAMPLES = 16
STARTS = 64  # of windows in a document
SENTENCE = 20  # tokens of a drawn sentence
MIXED = 2**17  # rows that stand for those of a mixture


@dataclass(frozen=True)
class Pairs:
    """Keys that a row sees, the mean over rows and layers.

    Attributes:
        decoder: of a decoder's row, of its own stream.
        encoder: of an encoder's row.
        cross: of a decoder's row, of the encoder's stream.
    """

    decoder: float
    encoder: float = 0.0
    cross: float = 0.0


@dataclass(frozen=True, eq=False)
class Rows:
    """Intervals of rows that aren't padding.

    Attributes:
        decoder: int64 [R, 2]: where a row's keys start and end, less the row's own place.
        encoder: the same of an encoder's rows; [0, 2] without one.
        cross: int64 [R]: how many of the encoder's rows a decoder's row sees.
    """

    decoder: Int64
    encoder: Int64
    cross: Int64

    @classmethod
    def of(cls, examples: Sequence[Example]) -> "Rows":
        """The rows of examples."""
        encoders = [e.encoder.mask for e in examples if e.encoder is not None]
        crosses = [e.cross.end - e.cross.start for e in examples if e.cross is not None]
        return cls(
            _placed([example.decoder.mask for example in examples]),
            _placed(encoders),
            np.concatenate(crosses).astype(np.int64) if crosses else np.zeros(0, dtype=np.int64),
        )

    @classmethod
    def mixed(cls, parts: Sequence["Rows"], shares: Sequence[float]) -> "Rows":
        """Rows of several kinds of sequences, of each in its share."""
        whole = sum(shares)
        counts = [round(MIXED * share / whole) for share in shares]
        pairs = list(zip(parts, counts, strict=True))
        return cls(
            np.concatenate([_spread(part.decoder, count) for part, count in pairs]),
            np.concatenate([_spread(part.encoder, count) for part, count in pairs]),
            np.concatenate([_spread(part.cross, count) for part, count in pairs]),
        )

    @classmethod
    @lru_cache(maxsize=64)
    def plain(cls, length: int, encoder_length: int) -> "Rows":
        """Rows that see what is in front of them, and all of an encoder's."""
        tokens = np.zeros(length, dtype=np.int64)
        if encoder_length:
            source = np.zeros(encoder_length, dtype=np.int64)
            return cls.of([encoder_decoder_example(source, tokens, tokens)])
        return cls.of([decoder_example(tokens, tokens)])

    @lru_cache(maxsize=256)  # noqa: B019 - a plan has few
    def pairs(self, model: ModelConfig) -> Pairs:
        """Keys that a row sees in a model, whose layers may have windows."""
        layers = range(model.num_layers)
        return Pairs(
            float(np.mean([_seen(self.decoder, model.window_of(n), False) for n in layers])),
            _seen(self.encoder, 0, True),
            float(self.cross.mean()) if len(self.cross) else 0.0,
        )

    def operations(
        self, model: ModelConfig, lengths: tuple[int, int], recomputed: tuple[int, int]
    ) -> Operations:
        """Operations of a sequence, counted as a run's metrics count them.

        Args:
            model: its shape.
            lengths: rows of the decoder and of the encoder.
            recomputed: encoder and decoder blocks whose forward pass is made again.
        """
        length, encoder_length = lengths
        stream = cross = None
        if encoder_length:
            stream = _stream(self.encoder, encoder_length)
            ends = _spread(self.cross, length)
            cross = _intervals(np.stack((np.zeros_like(ends), ends), 1), encoder_length)
        decoder = _stream(self.decoder, length)
        batch = Batch(
            decoder, decoder.tokens, torch.zeros(1, dtype=torch.int64), encoder=stream, cross=cross
        )
        return step_operations(model, batch, recomputed)


def _placed(masks: Sequence[Intervals]) -> Int64:
    """[R, 2] of rows that see something."""
    parts = []
    for mask in masks:
        rows = np.arange(len(mask.start), dtype=np.int64)[:, None]
        ends = np.stack((mask.start, mask.end), 1).astype(np.int64)
        parts.append((ends - rows)[mask.end > mask.start])
    return np.concatenate(parts) if parts else np.zeros((0, 2), dtype=np.int64)


def _seen(rows: Int64, window: int, both_ways: bool) -> float:
    if not len(rows):
        return 0.0
    start, end = rows[:, 0], rows[:, 1]
    if window:
        start = np.maximum(start, 1 - window)
        end = np.minimum(end, window) if both_ways else end
    return float((end - start).mean())


def _spread(rows: Int64, count: int) -> Int64:
    """As many rows, taken evenly; none of none."""
    count = count if len(rows) else 0
    return rows[np.arange(count) * len(rows) // count]


def _intervals(ends: Int64, keys: int) -> RowIntervals:
    start, end = (torch.from_numpy(ends[:, n].astype(np.int32))[None] for n in (0, 1))
    return RowIntervals(start, end, keys)


def _stream(rows: Int64, length: int) -> Stream:
    own = np.arange(length, dtype=np.int64)[:, None]
    positions = torch.arange(length, dtype=torch.int32)[None]
    mask = _intervals(_spread(rows, length) + own, length)
    return Stream(torch.zeros(1, length, dtype=torch.int64), positions, mask)


class _AnyVocabulary:
    """A vocabulary that has every special token: rows' intervals don't depend on which it is."""

    path, end_id, before, after = "", 0, (), ()

    def __init__(self, sentinels: int) -> None:
        self._sentinels = sentinels

    def find(self, token: str) -> int | None:
        """An id, but of one sentinel too many."""
        return None if token == f"<extra_id_{self._sentinels}>" else 0

    def token_texts(self) -> list[str]:
        """One token in :data:`SENTENCE` ends a sentence."""
        return ["."] + ["a"] * (SENTENCE - 1)


def corpus_rows(data: CorpusConfig, model: ModelConfig, document: int = 0) -> Rows:
    """The rows of pretraining.

    Where stores have objectives of their own, theirs in the shares of ``weights`` at the start, in
    equal ones where sizes would decide. A prefix that a token ends is one of a random length.

    Args:
        data: how documents become sequences.
        model: that reads them.
        document: tokens of a document; 0: as many as fit a sequence.
    """
    if data.objectives:
        weights = data.weights or (1.0,) * len(data.objectives)
        ones = [{"objective": name, "objectives": ()} for name in data.objectives]
        parts = [corpus_rows(data.model_copy(update=one), model, document) for one in ones]
        return Rows.mixed(parts, weights)
    length = data.sequence_length
    encoder = data.encoder_rows if model.is_encoder_decoder else 0
    if data.objective == "next_token":
        if encoder:
            return Rows.plain(length, encoder)
        is_cut = data.separate_documents and 0 < document < length
        return _windows(length, document) if is_cut else Rows.plain(length, encoder)
    axes = model.rope_axes if model.position == "rope" else 1
    structure = Structure(model.is_encoder_decoder, data.prefix, axes=axes)
    vocabulary = cast(Tokenizer, _AnyVocabulary(2 * (length + encoder)))
    prefix = data.prefix_lm.model_copy(update={"split_token": ""})
    told = data.model_copy(update={"prefix_lm": prefix})
    objective = choose_objective(told, vocabulary, structure)
    longest = longest_document(objective, Room(length, data.encoder_rows))
    size = max(min(document or longest, longest), SHORTEST)
    random = np.random.default_rng(0)
    drawn = [random.integers(0, SENTENCE, size) for _ in range(EXAMPLES)]
    return Rows.of([objective(tokens, random) for tokens in drawn])


def _windows(length: int, document: int) -> Rows:
    """Rows of windows that begin anywhere in documents of one length."""
    rows = np.arange(length)[None]
    begun = np.arange(STARTS)[:, None] * document // STARTS
    before = np.minimum((rows + begun) % document, rows).reshape(-1).astype(np.int64)
    none = np.zeros(0, dtype=np.int64)
    return Rows(np.stack((-before, np.ones_like(before)), 1), none.reshape(0, 2), none)


def conversation_rows(length: int, encoder: int, document: int, prefix: float) -> Rows:
    """The rows of conversations, packed.

    Args:
        length: rows of a sequence.
        encoder: rows of an encoder's; 0 without one.
        document: tokens of a conversation; 0: as many as fit.
        prefix: share of them that see each other both ways.
    """
    size = min(document or length, length)
    tokens = np.zeros(size, dtype=np.int64)
    if encoder:
        source = np.zeros(min(document or encoder, encoder), dtype=np.int64)
        return Rows.of([encoder_decoder_example(source, tokens, tokens)])
    return Rows.of([decoder_example(tokens, tokens, int(prefix * size))])
