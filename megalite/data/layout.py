"""Where a source and its target go, for each structure: the one place that knows."""

from dataclasses import dataclass

import numpy as np

from megalite.data.example import Array, Example, decoder_example, encoder_decoder_example
from megalite.data.structure import Structure
from megalite.generation.prompts import Prompt
from megalite.models.batch import IGNORE


@dataclass(frozen=True)
class Lead:
    """The decoder's rows before the target.

    Attributes:
        tokens: int64 [P].
        prefix: rows that see each other both ways.
        mask_row: the row of the mask that the target fills, where positions have two axes.
    """

    tokens: Array
    prefix: int
    mask_row: int | None = None

    def positions(self, count: int) -> Array | None:
        """Positions of ``count`` rows: int32 [count, 2]; None where they count from 0."""
        if self.mask_row is None:
            return None
        rows = np.arange(count, dtype=np.int32)
        first = np.minimum(rows, np.int32(self.mask_row))
        return np.stack((first, rows - first), 1)


def lead(source: Array, structure: Structure) -> Lead:
    """What the decoder reads before it gives a target.

    - encoder-decoder: its start token;
    - GLM: the source, the mask and the start of a piece;
    - others: the source.
    """
    if structure.is_encoder_decoder:
        return Lead(np.array([structure.start_id]), 0)
    if structure.blank is None:
        return Lead(source, len(source) if structure.is_prefix else 0)
    tokens = np.concatenate((source, structure.blank))
    prefix = len(source) + 1 if structure.is_prefix else 0
    return Lead(tokens, prefix, len(source) if structure.axes == 2 else None)


def paired_example(source: Array, target: Array, structure: Structure) -> Example:
    """An example that reads ``source`` and learns ``target``.

    The row before the target's first token predicts it: the loss at the last source token is there.

    Args:
        source: int64 [n], perhaps empty.
        target: int64 [m], at least one; two for a decoder alone without a source.
        structure: of the model.
    """
    before = lead(source, structure)
    tokens = np.concatenate((before.tokens, target[:-1]))
    labels = np.concatenate((np.full(len(before.tokens), IGNORE), target))[1:]
    return _example(source, tokens, labels, before, structure)


def scored_example(source: Array, answer: Array, structure: Structure) -> Example:
    """What a reward model reads of an answer: all of it; the value at its last token counts."""
    before = lead(source, structure)
    tokens = np.concatenate((before.tokens, answer))
    return _example(source, tokens, np.full(len(tokens), IGNORE), before, structure)


def _example(
    source: Array, tokens: Array, labels: Array, before: Lead, structure: Structure
) -> Example:
    if structure.is_encoder_decoder:
        return encoder_decoder_example(source, tokens, labels)
    return decoder_example(tokens, labels, before.prefix, before.positions(len(tokens)))


def as_prompt(tokens: list[int], structure: Structure) -> Prompt:
    """What an answer of this structure starts from."""
    before = lead(np.array(tokens, dtype=np.int64), structure)
    encoder = tokens if structure.is_encoder_decoder else ()
    positions = before.positions(len(before.tokens))
    pairs = None if positions is None else [(int(a), int(b)) for a, b in positions]
    return Prompt(before.tokens.tolist(), before.prefix, encoder, pairs)
