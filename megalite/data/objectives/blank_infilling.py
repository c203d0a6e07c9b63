"""GLM's autoregressive blank infilling, with two position axes."""

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field, model_validator

from megalite.config.section import Section
from megalite.data.arrays import Bool, Int32, Int64
from megalite.data.example import Example, decoder_example
from megalite.data.objectives.objective import split_end
from megalite.data.objectives.spans import poisson_lengths, scatter, sentences
from megalite.data.structure import Structure
from megalite.errors import ConfigError
from megalite.models.batch import IGNORE

Random = np.random.Generator


class BlankInfillingConfig(Section):
    """Which blanks a document gets; the weights are GLM-130B's, without sentences."""

    spans_weight: float = Field(0.3, ge=0, description="weight of blanks that are short spans")
    sentences_weight: float = Field(0.0, ge=0, description="weight of blanks that are sentences")
    document_weight: float = Field(0.7, ge=0, description="weight of one blank at the end")
    share: float = Field(
        0.15, gt=0, lt=1, description="share of a document's tokens in spans or sentences"
    )
    mean_span: float = Field(3.0, ge=1, description="mean tokens of a short span")
    least_end: float = Field(
        0.5, ge=0, lt=1, description="least share of a document's tokens in a blank at the end"
    )
    spans_token: str = Field("[MASK]", description="mask of a short span")
    sentences_token: str = Field("[sMASK]", description="mask of a sentence")
    document_token: str = Field("[gMASK]", description="mask of the end")
    start_token: str = Field("<sop>", description="first token of a span")
    end_token: str = Field("<eop>", description="token that is learned after a span")

    @model_validator(mode="after")
    def _check(self) -> "BlankInfillingConfig":
        if not any(self.weights):
            raise ConfigError("--data.blank_infilling: one of the three weights must be above 0")
        return self

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of spans, sentences and the end."""
        return self.spans_weight, self.sentences_weight, self.document_weight


@dataclass(frozen=True)
class BlankTokens:
    """Ids of the special tokens.

    Attributes:
        span: the mask of a short span.
        sentence: the mask of a sentence.
        document_end: the mask of the document's end.
        start: a span's first token.
        end: learned after a span's last token.
    """

    span: int
    sentence: int
    document_end: int
    start: int
    end: int


@dataclass(frozen=True)
class BlankInfilling:
    """Masks spans of a document and learns them, in random order, after it.

    Rows of the corrupted document see each other both ways; a span's rows see it and all rows
    before them. With two axes of positions, a span's rows have their mask's place on the first and
    count from 1 on the second, where the document's rows have 0. With one axis (GLM-130B)
    positions count on.

    Attributes:
        structure: of the model, a decoder alone.
        config: which blanks.
        special: ids of special tokens.
        is_sentence_end: bool [V], whether a token ends a sentence.
        end_id: a document's end token, which is left out; None for a tokenizer without one.

    Source: Du et al. 2022, arXiv:2103.10360, section 2.1 and figure 2; Zeng et al. 2022,
    arXiv:2210.02414, section 2.1.
    """

    structure: Structure
    config: BlankInfillingConfig
    special: BlankTokens
    is_sentence_end: Bool
    end_id: int | None

    def __call__(self, tokens: Int64, random: Random) -> Example:
        """See :class:`Objective`."""
        body, _ = split_end(tokens, self.end_id)
        weights = np.array(self.config.weights)
        kind = int(random.choice(3, p=weights / weights.sum()))
        choose, mask_id = (
            (self._short_spans, self.special.span),
            (self._sentences, self.special.sentence),
            (self._document_end, self.special.document_end),
        )[kind]
        starts, ends = choose(body, random)
        return self._example(body, starts, ends, mask_id, random)

    def _short_spans(self, tokens: Int64, random: Random) -> tuple[Int64, Int64]:
        total, most = int(_covered(len(tokens), self.config)), int(_most(len(tokens), self.config))
        most = min(most, len(tokens) - total + 1)
        mean = self.config.mean_span
        lengths = poisson_lengths(total, mean, random, shortest=1, most_spans=most)
        starts = scatter(len(tokens), lengths, random)
        return starts, starts + lengths

    def _sentences(self, tokens: Int64, random: Random) -> tuple[Int64, Int64]:
        """Random sentences that together cover the share, in the document's order."""
        bounds = sentences(tokens, self.is_sentence_end)
        order = random.permutation(len(bounds) - 1)
        lengths = np.diff(bounds)[order]
        count = int(np.searchsorted(np.cumsum(lengths), _covered(len(tokens), self.config))) + 1
        chosen = np.sort(order[: min(count, int(_most(len(tokens), self.config)))])
        return bounds[chosen], bounds[chosen + 1]

    def _document_end(self, tokens: Int64, random: Random) -> tuple[Int64, Int64]:
        count = len(tokens)
        length = int(random.integers(max(1, math.ceil(self.config.least_end * count)), count + 1))
        return np.array([count - length]), np.array([count])

    def _example(
        self, tokens: Int64, starts: Int64, ends: Int64, mask_id: int, random: Random
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

    def _positions(self, source: int, mask_rows: Int64, lengths: Int64) -> Int32 | None:
        if self.structure.axes == 1:
            return None
        first = np.concatenate((np.arange(source), np.repeat(mask_rows, lengths)))
        second = np.concatenate((np.zeros(source, dtype=np.int64), _counts(lengths) + 1))
        return np.stack((first, second), 1).astype(np.int32)

    def sizes(self, lengths: Int64) -> tuple[Int64, Int64]:
        """See :class:`Objective`; each span adds its mask and its start token."""
        spans = _most(lengths, self.config) if any(self.config.weights[:2]) else 1
        return lengths + 2 * spans, np.zeros_like(lengths)


def _covered(lengths: Int64 | int, config: BlankInfillingConfig) -> Int64:
    """Tokens in spans or sentences of documents of these lengths."""
    return np.maximum(np.ceil(np.asarray(lengths) * config.share).astype(np.int64), 1)


def _most(lengths: Int64 | int, config: BlankInfillingConfig) -> Int64:
    """Most spans of documents of these lengths: twice as many as their mean length gives."""
    return np.ceil(2 * _covered(lengths, config) / config.mean_span).astype(np.int64)


def _counts(lengths: Int64) -> Int64:
    """0, 1, .. lengths[0] - 1, 0, 1, .. lengths[1] - 1, and so on."""
    firsts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(firsts, lengths)
