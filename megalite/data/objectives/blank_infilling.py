"""GLM's autoregressive blank infilling, with two position axes."""

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from megalite.config.section import Section
from megalite.data.example import Array, Example, decoder_example
from megalite.data.objectives.objective import split_end
from megalite.data.objectives.spans import poisson_lengths, scatter, sentences
from megalite.data.structure import Structure
from megalite.errors import ConfigError
from megalite.models.batch import IGNORE

Random = np.random.Generator


class BlankInfillingConfig(Section):
    """Which blanks a document gets; the weights are GLM-130B's, [sMASK] left out."""

    spans_weight: float = Field(0.3, ge=0, description="weight of short spans, [MASK]")
    sentences_weight: float = Field(0.0, ge=0, description="weight of sentences, [sMASK]")
    document_weight: float = Field(0.7, ge=0, description="weight of one long end, [gMASK]")
    share: float = Field(0.15, gt=0, lt=1, description="share of tokens in spans or sentences")
    mean_span: float = Field(3.0, ge=1, description="tokens of a short span on average")
    least_end: float = Field(0.5, ge=0, lt=1, description="least share of the document in its end")
    spans_token: str = Field("[MASK]", description="stands for a short span")
    sentences_token: str = Field("[sMASK]", description="stands for a sentence")
    document_token: str = Field("[gMASK]", description="stands for the end")
    start_token: str = Field("<sop>", description="a span's first token")
    end_token: str = Field("<eop>", description="what is learned behind a span's last token")

    @model_validator(mode="after")
    def _check(self) -> "BlankInfillingConfig":
        if not any(self.weights):
            raise ConfigError("--data.blank_infilling: one of the three weights must be above 0")
        return self

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of spans, sentences and the end."""
        return self.spans_weight, self.sentences_weight, self.document_weight


@dataclass(frozen=True)
class BlankTokens:
    """Ids of the special tokens.

    Attributes:
        masks: of spans, sentences and the end.
        start: a span's first token.
        end: what is learned behind a span's last token.
    """

    masks: tuple[int, int, int]
    start: int
    end: int


@dataclass(frozen=True)
class BlankInfilling:
    """Masks spans of a document and learns them, in random order, behind it.

    Rows of the corrupted document see each other both ways; a span's rows see it and all rows
    before them. The first position of a span's rows is its mask's, the second counts from 1; the
    document's second is 0. With one axis (GLM-130B) positions count on.

    Attributes:
        structure: of the model, a decoder alone.
        config: which blanks.
        special: ids of special tokens.
        is_sentence_end: bool [V].
        end_id: a document's end token, which is left out.

    Source: Du et al. 2022, arXiv:2103.10360, section 2.1 and figure 2; Zeng et al. 2022,
    arXiv:2210.02414, section 2.1.
    """

    structure: Structure
    config: BlankInfillingConfig
    special: BlankTokens
    is_sentence_end: Array
    end_id: int | None

    def __call__(self, tokens: Array, random: Random) -> Example:
        """See :class:`Objective`."""
        body, _ = split_end(tokens, self.end_id)
        weights = np.array(self.config.weights)
        kind = int(random.choice(3, p=weights / weights.sum()))
        choose = (self._short_spans, self._sentences, self._document_end)[kind]
        starts, ends = choose(body, random)
        return self._example(body, starts, ends, self.special.masks[kind], random)

    def _short_spans(self, tokens: Array, random: Random) -> tuple[Array, Array]:
        total, most = int(_covered(len(tokens), self.config)), int(_most(len(tokens), self.config))
        most = min(most, len(tokens) - total + 1)
        mean = self.config.mean_span
        lengths = poisson_lengths(total, mean, random, shortest=1, most_spans=most)
        starts = scatter(len(tokens), lengths, random)
        return starts, starts + lengths

    def _sentences(self, tokens: Array, random: Random) -> tuple[Array, Array]:
        """Whole sentences in random order until they cover the share, given in their own order."""
        bounds = sentences(tokens, self.is_sentence_end)
        order = random.permutation(len(bounds) - 1)
        lengths = np.diff(bounds)[order]
        count = int(np.searchsorted(np.cumsum(lengths), _covered(len(tokens), self.config))) + 1
        chosen = np.sort(order[: min(count, int(_most(len(tokens), self.config)))])
        return bounds[chosen], bounds[chosen + 1]

    def _document_end(self, tokens: Array, random: Random) -> tuple[Array, Array]:
        count = len(tokens)
        length = int(random.integers(max(1, math.ceil(self.config.least_end * count)), count + 1))
        return np.array([count - length]), np.array([count])

    def _example(
        self, tokens: Array, starts: Array, ends: Array, mask_id: int, random: Random
    ) -> Example:
        lengths = ends - starts
        removed = np.repeat(starts, lengths) + _counts(lengths)
        places = starts - np.concatenate(([0], np.cumsum(lengths)[:-1]))
        source = np.insert(np.delete(tokens, removed), places, mask_id)
        mask_rows = places + np.arange(len(places))
        order = random.permutation(len(starts))
        start, end = [self.special.start], [self.special.end]
        spans = [tokens[starts[i] : ends[i]] for i in order]
        inputs = np.concatenate([source, *(np.concatenate((start, span)) for span in spans)])
        labels = [np.full(len(source), IGNORE), *(np.concatenate((span, end)) for span in spans)]
        prefix = len(source) if self.structure.is_prefix else 0
        positions = self._positions(len(source), mask_rows[order], lengths[order] + 1)
        return decoder_example(inputs, np.concatenate(labels), prefix, positions)

    def _positions(self, source: int, mask_rows: Array, lengths: Array) -> Array | None:
        if self.structure.axes == 1:
            return None
        first = np.concatenate((np.arange(source), np.repeat(mask_rows, lengths)))
        second = np.concatenate((np.zeros(source, dtype=np.int64), _counts(lengths) + 1))
        return np.stack((first, second), 1).astype(np.int32)

    def sizes(self, lengths: Array) -> tuple[Array, Array]:
        """See :class:`Objective`; each span adds its mask and its start."""
        spans = _most(lengths, self.config) if any(self.config.weights[:2]) else 1
        return lengths + 2 * spans, np.zeros_like(lengths)


def _covered(length, config: BlankInfillingConfig):
    """Tokens in spans or sentences of documents of these lengths."""
    return np.maximum(np.ceil(np.asarray(length) * config.share).astype(np.int64), 1)


def _most(length, config: BlankInfillingConfig):
    """Most spans of documents of these lengths: twice as many as their mean length gives."""
    return np.ceil(2 * _covered(length, config) / config.mean_span).astype(np.int64)


def _counts(lengths: Array) -> Array:
    """0, 1, .. lengths[0] - 1, 0, 1, .. lengths[1] - 1, and so on."""
    firsts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
