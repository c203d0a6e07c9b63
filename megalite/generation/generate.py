"""The one generation loop: greedy and sampled answers to a batch of prompts."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.generation.decoder import Decoder
from megalite.generation.sampling import SamplingConfig, choose, penalise_repetition
from megalite.generation.text import TextStream
from megalite.models.batch import Batch, Stream

OnText = Callable[[int, str], None]  # is given the number of an answer and its next text


@dataclass(frozen=True)
class Ending:
    """What ends an answer before its limit.

    Attributes:
        end_ids: tokens that end it and belong to it.
        pad_id: stands after a finished answer.
        stops: strings that end it; they need ``decode``.
        decode: from token ids to text; None for answers that stay tokens.
        on_text: is called as text becomes certain.
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
        tokens: [B, M] int64, ``pad_id`` after each answer.
        lengths: [B] int64, tokens of each answer, its end token included.
        ended: [B] bool, False where the limit cut it off.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor

    def answer(self, number: int) -> list[int]:
        """The tokens of one answer, its end token included."""
        return self.tokens[number, : int(self.lengths[number])].tolist()


@dataclass(frozen=True)
class Repetition:
    """The penalty of tokens that came before.

    Attributes:
        prompts: whose tokens count, padding left out.
        penalty: above 1 makes them less likely.
    """

    prompts: Stream
    penalty: float

    def seen(self, vocabulary: int, copies: int = 1) -> Tensor:
        """Which tokens each prompt has: bool [B copies, V], the copies of a prompt together."""
        tokens, real = self.prompts.tokens, ~self.prompts.mask.is_empty
        counts = torch.zeros(len(tokens), vocabulary, dtype=torch.int32, device=tokens.device)
        counts = counts.scatter_add_(1, tokens, real.int())
        return counts.bool().repeat_interleave(copies, 0)


class _Texts:
    """The texts of all answers as they grow; none where nothing asks for text."""

    def __init__(self, count: int, ending: Ending) -> None:
        self._ending, self._count = ending, count
        self._streams: list[TextStream] = []
        if ending.decode is not None and (ending.stops or ending.on_text is not None):
            self._streams = [TextStream(ending.decode, ending.stops) for _ in range(count)]

    def add(self, tokens: Tensor, is_open: Tensor) -> list[bool]:
        """Take the next token of each open answer; tell which answers met a stop string."""
        if not self._streams:
            return [False] * self._count
        chosen, still_open = tokens.tolist(), is_open.tolist()
        for number, stream in enumerate(self._streams):
            if still_open[number] and chosen[number] not in self._ending.end_ids:
                self._give(number, stream.add(chosen[number]))
        return [stream.stopped for stream in self._streams]

    def finish(self) -> None:
        for number, stream in enumerate(self._streams):
            self._give(number, stream.finish())

    def _give(self, number: int, text: str) -> None:
        if text and self._ending.on_text is not None:
            self._ending.on_text(number, text)


def generate(decoder: Decoder, prompts: Batch, config: SamplingConfig, ending: Ending) -> Answers:
    """Answer every prompt until all ended or reached ``config.max_new_tokens``.

    Args:
        decoder: has the prompts.
        prompts: the same; the repetition penalty counts their tokens. A token's random number is a
            function of the seed, its prompt's sample id and its place in the answer.
        config: how tokens are chosen.
        ending: what ends an answer.
    """
    logits = decoder.start()
    sample_ids, count = prompts.sample_ids, len(prompts.sample_ids)
    penalty, seen = config.repetition_penalty, None
    if penalty != 1:
        seen = Repetition(prompts.decoder, penalty).seen(logits.shape[-1])
    is_open = torch.ones(count, dtype=torch.bool, device=logits.device)
    ends = torch.tensor(sorted(ending.end_ids), dtype=torch.int64, device=logits.device)
    lengths = torch.zeros_like(sample_ids)
    texts, columns = _Texts(count, ending), []
    for index in range(config.max_new_tokens):
        if seen is not None:
            logits = penalise_repetition(logits, seen, penalty)
        tokens = choose(logits, config, sample_ids, index).masked_fill(~is_open, ending.pad_id)
        columns.append(tokens)
        lengths += is_open
        stopped = torch.tensor(texts.add(tokens, is_open), device=logits.device)
        is_open = is_open & ~torch.isin(tokens, ends) & ~stopped
        if index + 1 == config.max_new_tokens or not is_open.any():
            break
        if seen is not None:
            seen.scatter_(1, tokens[:, None], True)
        logits = decoder.advance(tokens)
    texts.finish()
    return Answers(torch.stack(columns, 1), lengths, ~is_open)
