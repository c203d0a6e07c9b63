"""The one generation loop: greedy and sampled answers to prompts."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from megalite.generation.decoder import Decoder, Take
from megalite.generation.sampling import (
    Repetition,
    SamplingConfig,
    Uniforms,
    choose_in_parts,
)
from megalite.generation.scores import Scored
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
        on_scored: is given the number of an answer that asks and its next token's score, before
            the token's text.
        look_every: tokens between two looks at which answers ended and what their texts are. No
            answer depends on it: what was drawn behind an end is dropped.
    """

    end_ids: Collection[int]
    pad_id: int = 0
    stops: Sequence[str] = ()
    decode: Callable[[Sequence[int]], str] | None = None
    on_text: OnText | None = None
    on_end: OnEnd | None = None
    on_scored: Callable[[int, Scored], None] | None = None
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
class Begun:
    """What is asked of answers that begin together.

    Attributes:
        prompts: what the decoder reads, a row each; the repetition penalty counts its tokens.
        sample_ids: int64 [n], of which draws are a function.
        limits: most tokens of each.
        configs: how the tokens of each are chosen.
        stops: strings that end each.
        likeliest: how many of the likeliest tokens are scored beside each one's; None: nothing is.
    """

    prompts: Stream
    sample_ids: Tensor
    limits: Sequence[int]
    configs: Sequence[SamplingConfig]
    stops: Sequence[Sequence[str]]
    likeliest: Sequence[int | None] = ()


class Source(Protocol):
    """What gives the logits of answers; see :class:`megalite.generation.slots.SlotDecoder`."""

    def refill(self) -> tuple[list[int], Tensor] | None:
        """Begin answers: their numbers, and the tokens to read first; None: none begins."""

    def advance(self, tokens: Tensor) -> Take:
        """Read one more token of each open answer; gives what waits for the next logits."""

    def select(self, sequences: Tensor) -> None:
        """Keep these answers."""


class _AtOnce:
    """A decoder that has all its prompts from the start, as one whose slots none waits for."""

    def __init__(self, decoder: Decoder, prompts: Stream) -> None:
        self._decoder, self._last = decoder, prompts.tokens[:, -1]
        self._is_begun = self._has_read = False
        self.select = decoder.select

    def refill(self) -> tuple[list[int], Tensor] | None:
        is_begun, self._is_begun = self._is_begun, True
        return None if is_begun else (list(range(len(self._last))), self._last)

    def advance(self, tokens: Tensor) -> Take:
        logits = self._decoder.advance(tokens) if self._has_read else self._decoder.start()
        self._has_read = True
        return lambda: logits


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


@dataclass(frozen=True)
class _Group:
    """Rows that are drawn alike.

    Attributes:
        config: how.
        index: int64 [n], which they are; None: all.
        uniforms: their random numbers.
    """

    config: SamplingConfig
    index: Tensor | None
    uniforms: Uniforms


class Writing:
    """Answers as they grow: rows on the device, and what the host knows without asking it.

    An answer has a number, and a place of that number in ``tokens`` and the others. When it is
    whole its place may be another's: what it held must have been read by then (``Ending.on_end``).

    Attributes:
        tokens: int64 [places, width].
        log_probs: fp32 [places, width], by which they were drawn.
        lengths: int64 [places].
        ended: bool [places], whether an end token or a stop string came.
    """

    def __init__(
        self,
        source: Source,
        begun: Callable[[Sequence[int]], Begun],
        room: tuple[int, int],
        ending: Ending,
        penalises: bool = False,
    ) -> None:
        """Begin with no answers.

        Args:
            source: gives logits, on the device of the streams that ``begun`` gives.
            begun: what is asked of answers, given their numbers.
            room: number of places, and most tokens of an answer.
            ending: what ends an answer, besides its own stop strings.
            penalises: whether the tokens of any answer are penalised by what came before them.
        """
        self._source, self._begun, self._ending = source, begun, ending
        self._room, self._penalises, self._steps = room, penalises, 0
        self._texts, self._closed = _Texts(ending), set[int]()
        self._asked: dict[int, tuple[int, SamplingConfig]] = {}  # limit and config by number
        self._likeliest: dict[int, int] = {}  # by number, of answers whose tokens are scored
        self._known: list[tuple[int, int]] = []  # of each row its answer, and tokens it has
        self._groups: list[_Group] = []
        self.rows: _Rows | None = None
        self._coming: Take | None = None  # logits of the next tokens
        self._beginning: list[int] = []  # answers whose first ones are among them

    def step(self) -> bool:
        """Draw the next token of each open answer, or begin where none is open.

        Returns:
            False: none is open, and none waits.
        """
        if self._coming is None:
            return self._go_on(None)
        logits = self._coming()
        if self._beginning:
            self._begin(self._beginning, logits)
        tokens = self._choose(logits)
        self._coming = None
        del logits  # the next ones take as much
        kept = self._look()
        if kept is not None:
            self._source.select(kept)
            tokens = tokens.index_select(0, kept)
        self._go_on(tokens if len(tokens) else None)
        return True

    def _go_on(self, tokens: Tensor | None) -> bool:
        """Begin answers in free slots, and the pass for the next logits; False: there are none.

        Args:
            tokens: of the open answers, [A] int64; None: none is open.
        """
        begun, self._beginning = self._source.refill(), []
        if begun is not None:
            self._beginning, first = begun
            tokens = first if tokens is None else torch.cat((tokens, first))
        self._coming = None if tokens is None else self._source.advance(tokens)
        return tokens is not None

    def close(self, number: int) -> None:
        """End an answer that is open at the next token, whatever it is."""
        self._closed.add(number)

    def _allocate(self, device: torch.device) -> None:
        places, width = self._room
        self.tokens = torch.full((places, width), self._ending.pad_id, device=device)
        self.log_probs = torch.zeros(self.tokens.shape, device=device)
        self.lengths = torch.zeros(places, dtype=torch.int64, device=device)
        self.ended = torch.zeros(places, dtype=torch.bool, device=device)
        ends = sorted(self._ending.end_ids)
        self._ends = torch.tensor(ends, dtype=torch.int64, device=device)

    def _begin(self, numbers: Sequence[int], logits: Tensor) -> None:
        """Add rows of answers behind the others."""
        begun, device = self._begun(numbers), logits.device
        if not self.rows_were_begun:
            self._allocate(device)
        index = torch.tensor(list(numbers), device=device)
        limits = torch.tensor(list(begun.limits), device=device)
        is_open = torch.ones_like(index, dtype=torch.bool)
        rows = _Rows(index, torch.zeros_like(index), limits, is_open, begun.sample_ids)
        if self._penalises:
            rows.seen = Repetition(begun.prompts, 1.0).seen(logits.shape[-1])
            rows.counts = torch.zeros(rows.seen.shape, device=device)
        self.tokens[index] = self._ending.pad_id
        self.log_probs[index] = 0.0
        self.lengths[index], self.ended[index] = 0, False
        self.rows = rows if self.rows is None else self.rows.joined(rows)
        self._known += [(number, 0) for number in numbers]
        asked = zip(begun.limits, begun.configs, strict=True)
        self._asked |= dict(zip(numbers, asked, strict=True))
        counts = zip(numbers, begun.likeliest, strict=False)
        self._likeliest |= {number: count for number, count in counts if count is not None}
        self._texts.begin(numbers, begun.stops)
        self._group(device)

    def _group(self, device: torch.device) -> None:
        """Find out which rows are drawn alike."""
        rows: dict[SamplingConfig, list[int]] = {}
        for row, (number, _) in enumerate(self._known):
            rows.setdefault(self._asked[number][1], []).append(row)
        self._groups = []
        for config, own in rows.items():
            index = None if len(rows) == 1 else torch.tensor(own, device=device)
            chosen = self._rows if index is None else self._rows.select(index)
            uniforms = Uniforms(config.seed, chosen.sample_ids, chosen.numbers)
            self._groups.append(_Group(config, index, uniforms))

    def _choose(self, logits: Tensor) -> Tensor:
        """The next token of each row, [A] int64."""
        rows = self._rows
        tokens, log_probs = self._drawn(logits)
        tokens = tokens.masked_fill(~rows.is_open, self._ending.pad_id)
        self._score(logits, tokens)
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

    def _score(self, logits: Tensor, tokens: Tensor) -> None:
        """Tell the scores of the next tokens, [A] int64, of answers that ask for them."""
        for row, (number, _) in enumerate(self._known if self._likeliest else ()):
            count = self._likeliest.get(number)
            if count is not None and self._ending.on_scored is not None:
                self._ending.on_scored(number, Scored.of(logits[row], int(tokens[row]), count))

    def _drawn(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and log-probabilities of rows, each as its own config says."""
        if len(self._groups) == 1:
            return _draw(logits, self._rows, self._groups[0])
        tokens = torch.empty_like(self._rows.answers)
        log_probs = logits.new_empty(len(tokens))
        for group in self._groups:
            index = group.index
            assert index is not None
            own = _draw(logits.index_select(0, index), self._rows.select(index), group)
            tokens[index], log_probs[index] = own
        return tokens, log_probs

    @property
    def _rows(self) -> _Rows:
        assert self.rows is not None
        return self.rows

    def _look(self) -> Tensor | None:
        """Which rows go on, [A'] int64; None where all do, or it is not yet time to look.

        The host copies a flag a row, and tokens where texts are asked for.
        """
        is_due = self._steps % self._ending.look_every == 0 or bool(self._closed)
        if not is_due and all(count != self._asked[number][0] for number, count in self._known):
            return None
        goes_on = self._rows.is_open.tolist()
        if self._closed:
            flags = zip(self._known, goes_on, strict=True)
            goes_on = [more and number not in self._closed for (number, _), more in flags]
            self._closed.clear()
        if self._texts.are_asked:
            pairs = zip(self._known, goes_on, strict=True)
            goes_on = [self._read(*known, more) for known, more in pairs]
        return None if all(goes_on) else self._keep(goes_on)

    def _keep(self, goes_on: Sequence[bool]) -> Tensor:
        """Leave the rows that don't go on; say which answers are whole."""
        pairs = list(zip(self._known, goes_on, strict=True))
        kept = [row for row, more in enumerate(goes_on) if more]
        index = torch.tensor(kept, dtype=torch.int64, device=self.tokens.device)
        self._known = [known for known, more in pairs if more]
        self.rows = self._rows.select(index) if kept else None
        self._group(self.tokens.device)
        for number in (number for (number, _), more in pairs if not more):
            self._texts.end(number)
            del self._asked[number]
            self._likeliest.pop(number, None)
            if self._ending.on_end is not None:
                self._ending.on_end(number)
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

    @property
    def rows_were_begun(self) -> bool:
        """Whether there is any answer yet."""
        return hasattr(self, "tokens")

    def answers(self) -> Answers:
        """What was written, as wide as the longest."""
        most = int(self.lengths.max())
        return Answers(self.tokens[:, :most], self.lengths, self.ended, self.log_probs[:, :most])


def _draw(logits: Tensor, rows: _Rows, group: _Group) -> tuple[Tensor, Tensor]:
    """The next tokens of rows that are drawn alike, and their log-probabilities."""
    uniform = None if group.config.temperature == 0 else group.uniforms.next()
    came = None if rows.seen is None or rows.counts is None else (rows.seen, rows.counts)
    return choose_in_parts(logits, group.config, uniform, came)


class _Texts:
    """The texts of open answers as they grow; none where nothing asks for text."""

    def __init__(self, ending: Ending) -> None:
        self._ending = ending
        self._streams: dict[int, TextStream] = {}
        self._read: dict[int, int] = {}
        self.are_asked = ending.decode is not None and bool(
            ending.stops or ending.on_text is not None
        )

    def begin(self, numbers: Sequence[int], stops: Sequence[Sequence[str]]) -> None:
        decode = self._ending.decode
        if not self.are_asked or decode is None:
            return
        for number, own in zip(numbers, stops, strict=True):
            self._streams[number] = TextStream(decode, (*self._ending.stops, *own))
            self._read[number] = 0

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

    def end(self, number: int) -> None:
        self._streams.pop(number, None)
        self._read.pop(number, None)

    def _give(self, number: int, text: str) -> None:
        if text and self._ending.on_text is not None:
            self._ending.on_text(number, text)


def writing(
    decoder: Decoder | SlotDecoder,
    prompts: Batch,
    config: SamplingConfig,
    ending: Ending,
    limits: Sequence[int] | None = None,
) -> Writing:
    """Answers to all prompts, of which :meth:`Writing.step` draws the next tokens.

    Args:
        decoder: has the prompts.
        prompts: the same, where the logits are. A token's random number is a function of the seed,
            its prompt's sample id and its place in the answer.
        config: how tokens are chosen.
        ending: what ends an answer.
        limits: most tokens of each answer; None: ``config.max_new_tokens``.
    """
    count, device = len(prompts.sample_ids), prompts.decoder.tokens.device
    source = decoder if isinstance(decoder, SlotDecoder) else _AtOnce(decoder, prompts.decoder)
    limits = [config.max_new_tokens] * count if limits is None else limits
    ids = prompts.sample_ids.to(device)

    def begun(numbers: Sequence[int]) -> Begun:
        index = torch.tensor(list(numbers), device=device)
        stream = prompts.decoder.select(index) if config.penalises else prompts.decoder
        own = [limits[number] for number in numbers]
        alike = [config] * len(own), [()] * len(own)
        return Begun(stream, ids.index_select(0, index), own, *alike)

    return Writing(source, begun, (count, max(limits)), ending, config.penalises)


def generate(
    decoder: Decoder | SlotDecoder,
    prompts: Batch,
    config: SamplingConfig,
    ending: Ending,
    limits: Sequence[int] | None = None,
) -> Answers:
    """Answer every prompt until all ended or reached their limits; see :func:`writing`.

    Tokens are drawn where the model's logits are. The host is told which rows ended every few
    tokens (``ending.look_every``) and when one reaches its limit.
    """
    own = writing(decoder, prompts, config, ending, limits)
    while own.step():
        pass
    return own.answers()
