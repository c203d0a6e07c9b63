"""Prompts of different lengths as one batch, padded on the left."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.errors import DataError
from megalite.models.batch import IGNORE, Batch, Stream
from megalite.ops import RowIntervals


@dataclass(frozen=True)
class Prompt:
    """What one answer starts from.

    Attributes:
        tokens: the decoder's first tokens, at least one.
        prefix: how many of them see each other both ways; 0 is causal.
        encoder_tokens: what an encoder reads; empty without an encoder.
        positions: a position, or two, for each of ``tokens``; None counts from 0.
    """

    tokens: Sequence[int]
    prefix: int = 0
    encoder_tokens: Sequence[int] = ()
    positions: Sequence[int] | Sequence[tuple[int, int]] | None = None


def batch_prompts(prompts: Sequence[Prompt], sample_ids: Sequence[int], pad_id: int = 0) -> Batch:
    """Pad prompts on the left into one batch; row intervals begin at a prompt's first token.

    Args:
        prompts: B prompts, all with or all without tokens for an encoder.
        sample_ids: B numbers of the samples.
        pad_id: stands in padding, which no prompt attends to.

    Raises:
        DataError: a prompt is empty, or only some have encoder tokens.
    """
    for number, prompt in enumerate(prompts):
        if not prompt.tokens:
            raise DataError(f"prompt {number}: has no tokens; an answer needs one to start from")
    longest = max(len(prompt.tokens) for prompt in prompts)
    pads = torch.tensor([longest - len(prompt.tokens) for prompt in prompts])[:, None]
    column = torch.arange(longest)[None, :]
    prefix_end = pads + torch.tensor([prompt.prefix for prompt in prompts])[:, None]
    real = column >= pads
    tokens = [[pad_id] * (longest - len(p.tokens)) + list(p.tokens) for p in prompts]
    start = torch.where(real, pads, 0).int()
    end = torch.where(real, torch.maximum(column + 1, prefix_end), 0).int()
    encoder, cross = _encoder(prompts, real, pad_id)
    return Batch(
        Stream(
            torch.tensor(tokens, dtype=torch.int64),
            _positions(prompts, longest),
            RowIntervals(start, end, longest),
        ),
        torch.full((len(prompts), longest), IGNORE),
        torch.tensor(list(sample_ids), dtype=torch.int64),
        encoder=encoder,
        cross=cross,
    )


def _positions(prompts: Sequence[Prompt], longest: int) -> Tensor:
    padded = []
    for prompt in prompts:
        given = prompt.positions
        own = torch.arange(len(prompt.tokens)) if given is None else torch.tensor(list(given))
        padding = own.new_zeros(longest - len(own), *own.shape[1:])
        padded.append(torch.cat((padding, own)))
    return torch.stack(padded).int()


def _encoder(
    prompts: Sequence[Prompt], real: Tensor, pad_id: int
) -> tuple[Stream, RowIntervals] | tuple[None, None]:
    """The encoder's stream, padded on the right, and what each decoder row reads of it."""
    lengths = torch.tensor([len(prompt.encoder_tokens) for prompt in prompts])[:, None]
    if not lengths.any():
        return None, None
    if not lengths.all():
        number = int((lengths == 0).flatten().nonzero()[0])
        raise DataError(f"prompt {number}: has nothing for the encoder to read, others have")
    longest = int(lengths.max())
    column = torch.arange(longest)[None, :].expand(len(prompts), -1)
    tokens = [[*p.encoder_tokens, *[pad_id] * (longest - len(p.encoder_tokens))] for p in prompts]
    end = torch.where(column < lengths, lengths, 0).int()
    mask = RowIntervals(torch.zeros_like(end), end, longest)
    stream = Stream(torch.tensor(tokens, dtype=torch.int64), column.int().contiguous(), mask)
    read = torch.where(real, lengths, 0).int()
    return stream, RowIntervals(torch.zeros_like(read), read, longest)
