"""The one generation loop: greedy and sampled answers to a batch of prompts."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.generation.decoder import Decoder
from megalite.generation.sampling import SamplingConfig, choose, penalise_repetition
from megalite.generation.text import TextStream
from megalite.models.batch import Batch, Stream

OnText = Callable[[int, str], None]


@dataclass(frozen=True)
class Ending:
    """What ends an answer before its limit.

    Attributes:
        end_ids: tokens that end it and belong to it.
        pad_id: stands behind a finished answer.
        stops: strings that end it; they need ``decode``.
        decode: from token ids to text; None without text.
        on_text: is given (row, piece of text) as pieces become sure.
    """

    end_ids: Collection[int]
    pad_id: int = 0
    stops: Sequence[str] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    on_text: OnText | None = None


@dataclass(frozen=True)
class Answers:
    """What was generated.

    Attributes:
        tokens: [B, M] int64, ``pad_id`` behind each answer.
        lengths: [B] int64 tokens of each answer, its end token included.
        ended: [B] bool, False where the limit cut it.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor

    def row(self, number: int) -> list[int]:
        """The tokens of one answer."""
        return self.tokens[number, : int(self.lengths[number])].tolist()


class _Texts:
    """The text streams of all rows, and what they say about stopping."""

    def __init__(self, rows: int, ending: Ending) -> None:
        self._ending = ending
        self._active = ending.decode is not None and (ending.stops or ending.on_text is not None)
        self._streams = [TextStream(ending.decode, ending.stops) for _ in range(rows)]

    def add(self, tokens: Tensor, open_rows: Tensor) -> list[bool]:
        """Take a token for each open row; tell which rows met a stop string."""
        if not self._active:
            return [False] * len(self._streams)
        chosen, is_open = tokens.tolist(), open_rows.tolist()
        for row, stream in enumerate(self._streams):
            if is_open[row] and chosen[row] not in self._ending.end_ids:
                self._give(row, stream.add(chosen[row]))
        return [stream.stopped for stream in self._streams]

    def finish(self) -> None:
        if self._active:
            for row, stream in enumerate(self._streams):
                self._give(row, stream.finish())

    def _give(self, row: int, piece: str) -> None:
        if piece and self._ending.on_text is not None:
            self._ending.on_text(row, piece)


def generate(decoder: Decoder, prompts: Batch, config: SamplingConfig, ending: Ending) -> Answers:
    """Answer every prompt until all ended or reached ``config.max_new_tokens``.

    Args:
        decoder: holds the prompts.
        prompts: the same, whose tokens the repetition penalty counts; a prompt's sample id, the
            seed and a token's number make its random number.
        config: how tokens are chosen.
        ending: what ends an answer.
    """
    logits = decoder.start()
    sample_ids, count = prompts.sample_ids, len(prompts.sample_ids)
    seen = _seen(prompts.decoder, logits.shape[-1]) if config.repetition_penalty != 1 else None
    open_rows = torch.ones(count, dtype=torch.bool, device=logits.device)
    ends = torch.tensor(sorted(ending.end_ids), dtype=torch.int64, device=logits.device)
    lengths = torch.zeros_like(sample_ids)
    texts, columns = _Texts(count, ending), []
    for index in range(config.max_new_tokens):
        if seen is not None:
            logits = penalise_repetition(logits, seen, config.repetition_penalty)
        tokens = choose(logits, config, sample_ids, index).masked_fill(~open_rows, ending.pad_id)
        columns.append(tokens)
        lengths += open_rows
        stopped = torch.tensor(texts.add(tokens, open_rows), device=logits.device)
        open_rows = open_rows & ~torch.isin(tokens, ends) & ~stopped
        if index + 1 == config.max_new_tokens or not open_rows.any():
            break
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = decoder.advance(tokens)
    texts.finish()
    return Answers(torch.stack(columns, 1), lengths, ~open_rows)


def _seen(prompts: Stream, vocabulary: int) -> Tensor:
    """Which tokens each prompt holds, padding left out: bool [B, V]."""
    tokens, real = prompts.tokens, ~prompts.mask.is_empty
    counts = torch.zeros(len(tokens), vocabulary, dtype=torch.int32, device=tokens.device)
    return counts.scatter_add_(1, tokens, real.int()).bool()
