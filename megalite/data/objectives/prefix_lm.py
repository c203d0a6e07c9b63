"""Prefix language modelling: read the first part of a document, learn the rest."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from megalite.config.section import Section
from megalite.data.arrays import Int64
from megalite.data.example import Example
from megalite.data.layout import paired_example
from megalite.data.objectives.objective import pair_sizes
from megalite.data.structure import Structure


class PrefixLMConfig(Section):
    """Where the prefix of a document ends."""

    split_token: str = Field(
        "", description="token that ends the prefix where it first stands; empty: a random place"
    )
    target_share: float = Field(
        1.0, gt=0, le=1, description="largest share of a document's tokens in a random target"
    )


@dataclass(frozen=True)
class PrefixLM:
    """Splits a document into a prefix and a target.

    Attributes:
        structure: of the model.
        split_id: the prefix ends with the first such token, and is empty where there is none (in
            the later pieces of a long document); None splits at random.
        target_share: the random target's length is uniform in [1, share * (n - 1)].
        opening: tokens before the source, such as a mode's.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 3.2.1 ("prefix language model").
    """

    structure: Structure
    split_id: int | None = None
    target_share: float = 1.0
    opening: tuple[int, ...] = ()

    def __call__(self, tokens: Int64, random: np.random.Generator) -> Example:
        """See :class:`Objective`."""
        split = self._random_split(len(tokens), random)
        if self.split_id is not None:
            places = np.flatnonzero(tokens[:-1] == self.split_id)
            split = int(places[0]) + 1 if len(places) else 0
        source = np.concatenate((np.array(self.opening, dtype=np.int64), tokens[:split]))
        return paired_example(source, tokens[split:], self.structure)

    def _random_split(self, length: int, random: np.random.Generator) -> int:
        most = max(1, int(self.target_share * (length - 1)))
        return length - int(random.integers(1, most + 1))

    def sizes(self, lengths: Int64) -> tuple[Int64, Int64]:
        """See :class:`Objective`."""
        opening = len(self.opening)
        if not self.structure.is_encoder_decoder:
            return pair_sizes(lengths * 0 + opening, lengths, self.structure)
        targets = lengths
        if self.split_id is None:
            targets = np.maximum((self.target_share * (lengths - 1)).astype(np.int64), 1)
        return pair_sizes(lengths - 1 + opening, targets, self.structure)
