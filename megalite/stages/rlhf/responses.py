"""Prompts with their answers: the sequences that the four models of PPO read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megalite.errors import DataError
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.models.batch import IGNORE, Batch, Stream
from megalite.ops import RowIntervals
from megalite.stages.rlhf.rewards import last_index


@dataclass(frozen=True)
class Responses:
    """Answered prompts, padded on the right.

    Attributes:
        batch: sequences of prompt and answer; the label of a row is the next token where that is
            the answer's, else ``IGNORE``.
        mask: [B, S] bool, rows with a label: the answer tokens of each sequence.
    """

    batch: Batch
    mask: Tensor

    def to(self, device: torch.device | str) -> "Responses":
        """The same with every tensor on ``device``."""
        return Responses(self.batch.to(device), self.mask.to(device))


def respond(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    sample_ids: Sequence[int],
    pad_id: int = 0,
) -> Responses:
    """Put answers behind their prompts, sequences padded on the right.

    Args:
        prompts: B prompts.
        answers: B answers of at least one token, their end token included.
        sample_ids: B numbers of the samples.
        pad_id: stands in padding.

    Raises:
        DataError: an answer is empty.
    """
    for number, answer in enumerate(answers):
        if not answer:
            raise DataError(f"answer {number}: has no tokens; it needs one to be scored")
    texts = [_answered(*pair) for pair in zip(prompts, answers, strict=True)]
    batch = _to_right(batch_prompts(texts, sample_ids, pad_id))
    column = torch.arange(batch.decoder.length)[None, :]
    prompt_rows = torch.tensor([len(prompt.tokens) for prompt in prompts])[:, None]
    answer_rows = torch.tensor([len(answer) for answer in answers])[:, None]
    mask = (column >= prompt_rows - 1) & (column < prompt_rows + answer_rows - 1)
    following = torch.nn.functional.pad(batch.decoder.tokens[:, 1:], (0, 1))
    return Responses(replace(batch, labels=following.masked_fill(~mask, IGNORE)), mask)


def scores_at_end(values: Tensor, mask: Tensor) -> Tensor:
    """The value at each answer's last token: [B] fp32 of ``values`` [B, S]."""
    return values.gather(1, (last_index(mask) + 1)[:, None]).squeeze(1)


def _answered(prompt: Prompt, answer: Sequence[int]) -> Prompt:
    positions = prompt.positions
    if positions is not None:
        last, counts = positions[-1], range(1, len(answer) + 1)
        more = [last + i if isinstance(last, int) else (last[0], last[1] + i) for i in counts]
        positions = [*positions, *more]
    return replace(prompt, tokens=[*prompt.tokens, *answer], positions=positions)


def _to_right(batch: Batch) -> Batch:
    """Move the padding of the decoder's rows from the left to the right."""
    stream, mask = batch.decoder, batch.decoder.mask
    pads, length = mask.start.amax(1), stream.length
    source = (torch.arange(length)[None, :] + pads[:, None]) % length

    def moved(rows: Tensor) -> Tensor:
        index = source if rows.dim() == 2 else source[..., None].expand_as(rows)
        return rows.gather(1, index)

    real = moved(mask.end) > 0
    shift = pads[:, None].int()
    start, end = (torch.where(real, moved(x) - shift, 0) for x in (mask.start, mask.end))
    right = Stream(moved(stream.tokens), moved(stream.positions), RowIntervals(start, end, length))
    cross = batch.cross
    if cross is not None:
        cross = RowIntervals(moved(cross.start), moved(cross.end), cross.num_keys)
    return replace(batch, decoder=right, cross=cross)
