"""The one generation loop: greedy and sampled answers to prompts."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from megalite.generation.decoder import Decoder
from megalite.generation.sampling import (
    SamplingConfig,
    choose,
    penalise_presence,
    penalise_repetition,
)
from megalite.generation.slots import SlotDecoder
from megalite.generation.text import TextStream
from megalite.models.batch import Batch, Stream

OnText = Callable[[int, str], None]  # is given the number of an answer and its next text
OnEnd = Callable[[int], None]  # is given the number of an answer, behind its last text
LOOK_EVERY = 4  # tokens; a finished row is decoded at most this much longer


@dataclass(frozen=True)
class Ending:
    """What ends an answer before its limit.

    Attributes:
        end_ids: tokens that end it and belong to it.
        pad_id: stands after a finished answer.
        stops: strings that end it; they need ``decode``.
        decode: from token ids to text; None for answers that stay tokens.
        on_text: is called as text becomes certain.
        on_end: is called when an answer is whole.
        look_every: tokens between two looks at which answers ended and what their texts are. No
            answer depends on it: what was drawn behind an end is dropped.
    """

    end_ids: Collection[int]
    pad_id: int = 0
    stops: Sequence[str] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    on_text: OnText | None = None
    on_end: OnEnd | None = None
    look_every: int = LOOK_EVERY


@dataclass(frozen=True)
class Answers:
    """What was generated.

    Attributes:
        tokens: [B, M] int64, ``pad_id`` after each answer.
        lengths: [B] int64, tokens of each answer, its end token included.
        ended: [B] bool, False where the limit cut it off.
        log_probs: [B, M] fp32, by which each token was drawn, 0 after each answer; None of a
            search, which draws none.
    """

    tokens: Tensor
    lengths: Tensor
    ended: Tensor
    log_probs: Tensor | None = None

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


class _AtOnce:
    """A decoder that has all its prompts from the start, as one whose slots none waits for."""

    def __init__(self, decoder: Decoder, count: int) -> None:
        self._decoder, self._count = decoder, count
        self.advance, self.select = decoder.advance, decoder.select

    def refill(self) -> tuple[list[int], Tensor] | None:
        count, self._count = self._count, 0
        return (list(range(count)), self._decoder.start()) if count else None


@dataclass
class _Rows:
    """The answers that are being written, on the device.

    Attributes:
        answers: int64 [A], their numbers.
        numbers: int64 [A], tokens that each has.
        limits: int64 [A], most tokens of each.
        is_open: bool [A], False once an end token came or the limit is reached.
        sample_ids: int64 [A].
        seen: bool [A, V], tokens that stand in prompt or answer; None where nothing asks.
        counts: fp32 [A, V], how often the answer has each token; likewise.
    """

    answers: Tensor
    numbers: Tensor
    limits: Tensor
    is_open: Tensor
    sample_ids: Tensor
    seen: Tensor | None = None
    counts: Tensor | None = None

    def select(self, index: Tensor) -> "_Rows":
        """The rows at ``index``, [A'] int64."""
        found = {k: v.index_select(0, index) for k, v in vars(self).items() if v is not None}
        return replace(self, **found)

    def joined(self, other: "_Rows") -> "_Rows":
        """The rows of both."""
        pairs = {k: (v, getattr(other, k)) for k, v in vars(self).items() if v is not None}
        return replace(self, **{name: torch.cat(pair) for name, pair in pairs.items()})


class _Generation:
    """Answers as they grow: rows on the device, and what the host knows without asking it."""

    def __init__(
        self, prompts: Batch, limits: Sequence[int], config: SamplingConfig, ending: Ending
    ) -> None:
        self._prompts, self._config, self._ending = prompts, config, ending
        self._limits, self._steps = limits, 0
        count, device = len(limits), prompts.decoder.tokens.device
        self.tokens = torch.full((count, max(limits)), ending.pad_id, device=device)
        self.log_probs = torch.zeros(self.tokens.shape, device=device)
        self.lengths = torch.zeros(count, dtype=torch.int64, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self._ends = torch.tensor(sorted(ending.end_ids), dtype=torch.int64, device=device)
        self.rows: _Rows | None = None
        self._known: list[tuple[int, int]] = []  # of each row its answer, and tokens it has
        self._texts = _Texts(count, ending)

    def begin(self, answers: Sequence[int], vocabulary: int) -> None:
        """Add rows of answers behind the others."""
        device = self.tokens.device
        index = torch.tensor(list(answers), device=device)
        limits = torch.tensor([self._limits[number] for number in answers], device=device)
        ids = self._prompts.sample_ids.to(device).index_select(0, index)
        is_open = torch.ones_like(index, dtype=torch.bool)
        rows = _Rows(index, torch.zeros_like(index), limits, is_open, ids)
        if self._config.penalises:
            stream = self._prompts.decoder.select(index)
            rows.seen = Repetition(stream, 1.0).seen(vocabulary)
            rows.counts = torch.zeros(rows.seen.shape, device=device)
        self.rows = rows if self.rows is None else self.rows.joined(rows)
        self._known += [(number, 0) for number in answers]

    def choose(self, logits: Tensor) -> Tensor:
        """The next token of each row, [A] int64."""
        rows, config = self._rows, self._config
        if rows.seen is not None and rows.counts is not None:
            logits = penalise_repetition(logits, rows.seen, config.repetition_penalty)
            presence, frequency = config.presence_penalty, config.frequency_penalty
            logits = penalise_presence(logits, rows.counts, presence, frequency)
        tokens, log_probs = choose(logits, config, rows.sample_ids, rows.numbers)
        tokens = tokens.masked_fill(~rows.is_open, self._ending.pad_id)
        at = rows.answers, rows.numbers
        self.tokens[at] = tokens
        self.log_probs[at] = log_probs.masked_fill(~rows.is_open, 0.0)
        self.lengths.index_add_(0, rows.answers, rows.is_open.long())
        is_end = torch.isin(tokens, self._ends) & rows.is_open
        self.ended[rows.answers] |= is_end
        rows.numbers = rows.numbers + 1
        rows.is_open = rows.is_open & ~is_end & (rows.numbers < rows.limits)
        if rows.seen is not None and rows.counts is not None:
            rows.seen.scatter_(1, tokens[:, None], True)
            rows.counts.scatter_add_(1, tokens[:, None], torch.ones_like(rows.counts[:, :1]))
        self._known = [(number, count + 1) for number, count in self._known]
        self._steps += 1
        return tokens

    @property
    def _rows(self) -> _Rows:
        assert self.rows is not None
        return self.rows

    def look(self) -> Tensor | None:
        """Which rows go on, [A'] int64; None where all do, or it is not yet time to look.

        The host copies a flag a row, and tokens where texts are asked for.
        """
        at_limit = any(count == self._limits[number] for number, count in self._known)
        if not at_limit and self._steps % self._ending.look_every:
            return None
        goes_on = self._rows.is_open.tolist()
        if self._texts.are_asked:
            pairs = zip(self._known, goes_on, strict=True)
            goes_on = [self._read(*known, more) for known, more in pairs]
        if all(goes_on):
            return None
        kept = [row for row, more in enumerate(goes_on) if more]
        if self._ending.on_end is not None:
            for (number, _), more in zip(self._known, goes_on, strict=True):
                if not more:
                    self._ending.on_end(number)
        self._known = [self._known[row] for row in kept]
        index = torch.tensor(kept, dtype=torch.int64, device=self.tokens.device)
        self.rows = self._rows.select(index) if kept else None
        return index

    def _read(self, number: int, count: int, goes_on: bool) -> bool:
        """Turn a row's next tokens into text; whether it goes on behind them."""
        length = self._texts.add(number, self.tokens[number, :count].tolist())
        if length is not None:
            self.tokens[number, length:] = self._ending.pad_id
            self.log_probs[number, length:] = 0.0
            self.lengths[number], self.ended[number] = length, True
        elif not goes_on:
            self._texts.finish(number)
        return goes_on and length is None

    def answers(self) -> Answers:
        """What was written, as wide as the longest."""
        most = int(self.lengths.max())
        return Answers(self.tokens[:, :most], self.lengths, self.ended, self.log_probs[:, :most])


class _Texts:
    """The texts of all answers as they grow; none where nothing asks for text."""

    def __init__(self, count: int, ending: Ending) -> None:
        self._ending = ending
        self._streams: list[TextStream] = []
        self._read = [0] * count
        if ending.decode is not None and (ending.stops or ending.on_text is not None):
            self._streams = [TextStream(ending.decode, ending.stops) for _ in range(count)]

    @property
    def are_asked(self) -> bool:
        return bool(self._streams)

    def add(self, number: int, tokens: Sequence[int]) -> int | None:
        """Take an answer's tokens so far; the number of them with which a stop string came."""
        stream = self._streams[number]
        for at in range(self._read[number], len(tokens)):
            self._read[number] = at + 1
            if tokens[at] in self._ending.end_ids:
                return None
            self._give(number, stream.add(tokens[at]))
            if stream.stopped:
                return at + 1
        return None

    def finish(self, number: int) -> None:
        self._give(number, self._streams[number].finish())

    def _give(self, number: int, text: str) -> None:
        if text and self._ending.on_text is not None:
            self._ending.on_text(number, text)


def generate(
    decoder: Decoder | SlotDecoder,
    prompts: Batch,
    config: SamplingConfig,
    ending: Ending,
    limits: Sequence[int] | None = None,
) -> Answers:
    """Answer every prompt until all ended or reached their limits.

    Tokens are drawn where the model's logits are. The host is told which rows ended every few
    tokens (``ending.look_every``) and when one reaches its limit.

    Args:
        decoder: has the prompts.
        prompts: the same, where the logits are; the repetition penalty counts their tokens. A
            token's random number is a function of the seed, its prompt's sample id and its place in
            the answer.
        config: how tokens are chosen.
        ending: what ends an answer.
        limits: most tokens of each answer; None: ``config.max_new_tokens``.
    """
    count = len(prompts.sample_ids)
    source = decoder if isinstance(decoder, SlotDecoder) else _AtOnce(decoder, count)
    limits = [config.max_new_tokens] * count if limits is None else limits
    generation, logits = _Generation(prompts, limits, config, ending), None
    while True:
        begun = source.refill()
        if begun is not None:
            numbers, first = begun
            generation.begin(numbers, first.shape[-1])
            logits = first if logits is None else torch.cat((logits, first))
        if logits is None:
            return generation.answers()
        tokens = generation.choose(logits)
        kept = generation.look()
        if kept is not None:
            source.select(kept)
            tokens = tokens.index_select(0, kept)
        logits = source.advance(tokens) if len(tokens) else None
