"""Where a source and its target go in each structure; no other module lays them out."""

from dataclasses import dataclass

import numpy as np

from megalite.data.arrays import Int32, Int64
from megalite.data.example import Example, decoder_example, encoder_decoder_example
from megalite.data.structure import Structure
from megalite.generation.prompts import Prompt
from megalite.models.batch import IGNORE


@dataclass(frozen=True)
class Lead:
    """The decoder's rows before the target.

    Attributes:
        tokens: int64 [P].
        prefix: how many of them see each other both ways.
        mask_row: where positions have two axes, the row of the mask that the target fills.
    """

    tokens: Int64
    prefix: int
    mask_row: int | None = None

    def positions(self, count: int) -> Int32 | None:
        """Positions of ``count`` rows, int32 [count, 2]; None where they count from 0."""
        if self.mask_row is None:
            return None
        rows = np.arange(count, dtype=np.int32)
        first = np.minimum(rows, np.int32(self.mask_row))
        return np.stack((first, rows - first), 1)


def lead(source: Int64, structure: Structure) -> Lead:
    """What the decoder reads before it gives a target.

    - encoder-decoder: its start token;
    - GLM: the source, the mask and the answer's start token;
    - others: the source.
    """
    if structure.is_encoder_decoder:
        return Lead(np.array([structure.start_id]), 0)
    blank = structure.blank
    if blank is None:
        return Lead(source, len(source) if structure.is_prefix else 0)
    own = [blank.mask_id, blank.start_id]
    if source[-2:].tolist() == own:  # the tokenizer itself writes them
        source = source[:-2]
    tokens = np.concatenate((source, own))
    prefix = len(source) + 1 if structure.is_prefix else 0
    return Lead(tokens, prefix, len(source) if structure.axes == 2 else None)


def paired_example(source: Int64, target: Int64, structure: Structure) -> Example:
    """An example that reads ``source`` and learns ``target``.

    The row before the target's first token predicts that token.

    Args:
        source: int64 [n], perhaps empty.
        target: int64 [m], at least one; two for a decoder alone without a source.
        structure: of the model.
    """
    before = lead(source, structure)
    tokens = np.concatenate((before.tokens, target[:-1]))
    labels = np.concatenate((np.full(len(before.tokens), IGNORE), target))[1:]
    return _example(source, tokens, labels, before, structure)


def scored_example(source: Int64, answer: Int64, structure: Structure) -> Example:
    """What a reward model reads: all of the answer, whose last token's value is its score."""
    before = lead(source, structure)
    tokens = np.concatenate((before.tokens, answer))
    return _example(source, tokens, np.full(len(tokens), IGNORE), before, structure)


def _example(
    source: Int64, tokens: Int64, labels: Int64, before: Lead, structure: Structure
) -> Example:
    if structure.is_encoder_decoder:
        return encoder_decoder_example(source, tokens, labels)
    return decoder_example(tokens, labels, before.prefix, before.positions(len(tokens)))


def as_prompt(tokens: list[int], structure: Structure) -> Prompt:
    """What generation starts an answer from."""
    before = lead(np.array(tokens, dtype=np.int64), structure)
    positions = before.positions(len(before.tokens))
    pairs = None if positions is None else [(int(a), int(b)) for a, b in positions]
    first = before.tokens.tolist()
    if structure.forced_id is not None and structure.is_encoder_decoder:
        first.append(structure.forced_id)
    encoder = tokens if structure.is_encoder_decoder else ()
    return Prompt(first, before.prefix, encoder, pairs)
