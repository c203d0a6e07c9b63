"""T5's span corruption: sentinels replace spans of the source, and precede them in the target."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from megalite.config.section import Section
from megalite.data.arrays import Int64
from megalite.data.example import Example
from megalite.data.layout import paired_example
from megalite.data.objectives.objective import pair_sizes, split_end
from megalite.data.objectives.spans import noise_counts, random_noise_mask, replace_spans
from megalite.data.structure import Structure


class SpanCorruptionConfig(Section):
    """How much is corrupted; the defaults are T5's."""

    noise: float = Field(0.15, gt=0, lt=1, description="share of a document's tokens in spans")
    mean_span: float = Field(3.0, ge=1, description="mean tokens of a span")


@dataclass(frozen=True)
class SpanCorruption:
    """Replaces spans by sentinels; the target is each sentinel followed by its span.

    Attributes:
        structure: of the model.
        sentinels: int64 ids in their order; T5's descend from the top of the vocabulary.
        end_id: ends source and target; None for a tokenizer without it.
        noise: share of tokens in spans.
        mean_span: mean tokens of a span.
        opening: tokens before the source, such as a mode's.

    Source: see :func:`megalite.data.objectives.spans.noise_counts`.
    """

    structure: Structure
    sentinels: Int64
    end_id: int | None
    noise: float = 0.15
    mean_span: float = 3.0
    opening: tuple[int, ...] = ()

    def __call__(self, tokens: Int64, random: np.random.Generator) -> Example:
        """See :class:`Objective`."""
        body, end = split_end(tokens, self.end_id)
        mask = random_noise_mask(len(body), self.noise, self.mean_span, random)
        opening = np.array(self.opening, dtype=np.int64)
        source = np.concatenate((opening, replace_spans(body, mask, self.sentinels), end))
        target = np.concatenate((replace_spans(body, ~mask, self.sentinels), end))
        return paired_example(source, target, self.structure)

    def sizes(self, lengths: Int64) -> tuple[Int64, Int64]:
        """See :class:`Objective`."""
        noise, spans = noise_counts(lengths, self.noise, self.mean_span)
        ends = int(self.end_id is not None)
        source = lengths - noise + spans + ends + len(self.opening)
        return pair_sizes(source, noise + spans + ends, self.structure)

    def num_sentinels(self, length: int) -> int:
        """Sentinels that a document of this many tokens needs."""
        return int(noise_counts(np.array(length), self.noise, self.mean_span)[1])
