"""BART's denoising: the encoder reads a noised document, the decoder learns the document."""

import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from megalite.config.section import Section
from megalite.data.arrays import Bool, Int64
from megalite.data.example import Example
from megalite.data.layout import paired_example
from megalite.data.objectives.objective import pair_sizes, split_end
from megalite.data.objectives.spans import poisson_lengths, scatter, sentences
from megalite.data.structure import Structure

Random = np.random.Generator


class DenoisingConfig(Section):
    """How a document is noised; the defaults are BART's. 0 leaves a kind of noise out."""

    infill: float = Field(0.3, ge=0, lt=1, description="share of tokens in infilled spans")
    mean_span: float = Field(3.0, gt=0, description="mean tokens of an infilled span")
    permute: float = Field(1.0, ge=0, le=1, description="probability of shuffling the sentences")
    mask: float = Field(0.0, ge=0, lt=1, description="share of tokens masked one by one")
    delete: float = Field(0.0, ge=0, lt=1, description="share of tokens deleted")
    rotate: float = Field(0.0, ge=0, le=1, description="probability of rotating the document")
    mask_token: str = Field("<mask>", description="mask of a token or an infilled span")


@dataclass(frozen=True)
class Denoising:
    """Noises a document in up to five ways: it permutes sentences first and rotates last.

    Attributes:
        structure: of the model, an encoder-decoder.
        config: the noise.
        mask_id: the mask of a token or an infilled span.
        is_sentence_end: bool [V], whether a token ends a sentence.
        end_id: ends source and target; None for a tokenizer without it.

    Source: Lewis et al. 2020, arXiv:1910.13461, section 2.2.
    """

    structure: Structure
    config: DenoisingConfig
    mask_id: int
    is_sentence_end: Bool
    end_id: int | None

    def __call__(self, tokens: Int64, random: Random) -> Example:
        """See :class:`Objective`."""
        body, end = split_end(tokens, self.end_id)
        source, config = body, self.config
        if random.random() < config.permute:
            source = permute_sentences(source, self.is_sentence_end, random)
        source = infill(source, config.infill, config.mean_span, self.mask_id, random)
        source = mask_tokens(source, config.mask, self.mask_id, random)
        source = delete_tokens(source, config.delete, random)
        if random.random() < config.rotate:
            source = np.roll(source, -int(random.integers(len(source))))
        target = np.concatenate((body, end))
        return paired_example(np.concatenate((source, end)), target, self.structure)

    def sizes(self, lengths: Int64) -> tuple[Int64, Int64]:
        """See :class:`Objective`; noise never makes a document longer."""
        rows = lengths + int(self.end_id is not None)
        return pair_sizes(rows, rows, self.structure)


def permute_sentences(tokens: Int64, is_end: Bool, random: Random) -> Int64:
    """Shuffle the sentences."""
    bounds = sentences(tokens, is_end)
    order = random.permutation(len(bounds) - 1)
    return np.concatenate([tokens[bounds[i] : bounds[i + 1]] for i in order])


def infill(tokens: Int64, share: float, mean_span: float, mask_id: int, random: Random) -> Int64:
    """Replace spans, also empty ones, by one mask each.

    There are at most as many spans as tokens in them, so that the result is never longer.
    """
    total = min(math.ceil(share * len(tokens)), len(tokens) - 1)
    if total < 1:
        return tokens
    most = min(total, len(tokens) - total + 1)
    lengths = poisson_lengths(total, mean_span, random, shortest=0, most_spans=most)
    if lengths.sum() < len(lengths):  # nearly all of the few spans are empty
        lengths = np.array([total])
    starts = scatter(len(tokens), lengths, random)
    inside = np.zeros(len(tokens) + 1, dtype=np.int64)
    np.add.at(inside, starts, 1)
    np.add.at(inside, starts + lengths, -1)
    kept = np.cumsum(inside)[:-1] == 0
    places = starts - np.concatenate(([0], np.cumsum(lengths)[:-1]))  # among the kept tokens
    return np.insert(tokens[kept], places, mask_id)


def mask_tokens(tokens: Int64, share: float, mask_id: int, random: Random) -> Int64:
    """Replace a share of the tokens by a mask each."""
    chosen = random.permutation(len(tokens)) < round(share * len(tokens))
    return np.where(chosen, mask_id, tokens)


def delete_tokens(tokens: Int64, share: float, random: Random) -> Int64:
    """Delete a share of the tokens, but not all of them."""
    count = min(round(share * len(tokens)), len(tokens) - 1)
    return tokens[random.permutation(len(tokens)) >= count]
