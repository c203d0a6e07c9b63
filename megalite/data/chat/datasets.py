"""Datasets of the stages after pretraining: conversations, rankings, prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from megalite.data.chat.chat import ANSWERS, Chat
from megalite.data.chat.examples import answer_example, learned_example, prompt_of, reads_all
from megalite.data.chat.long_rows import LengthCheck, RowRules, rounds_of
from megalite.data.chat.row_source import RowSource
from megalite.data.chat.row_store import NOWHERE, RowStores
from megalite.data.chat.tokenized import TokenizedRow, TokenizedRows
from megalite.data.chat.turns import (
    Ranking,
    Turn,
    Turns,
    parse_conversation,
    parse_prompt,
    parse_ranking,
    parse_with_margin,
)
from megalite.data.example import Example, collate, cut_rows, pack
from megalite.data.packing import first_fit
from megalite.data.records import Fields, Record, Records
from megalite.data.structure import Structure
from megalite.errors import ConfigError, DataError
from megalite.generation.prompts import Prompt
from megalite.models.batch import IGNORE, Batch


class Conversations:
    """SFT samples; with ``packed`` several conversations share a sequence, unseen by each other.

    Attributes:
        notes: what of the files is not read or was left out.
    """

    def __init__(
        self,
        paths: Sequence[str],
        chat: Chat,
        structure: Structure,
        rules: RowRules,
        packed: bool,
        stores: RowStores = NOWHERE,
    ) -> None:
        """Read and tokenize files.

        Args:
            paths: of JSON or Parquet files.
            chat: writes conversations as tokens.
            structure: encoder-decoder, causal or prefix.
            rules: how records are read.
            packed: whether conversations share sequences.
            stores: where what was tokenized is kept.

        Raises:
            DataError: a record is malformed or too long, or none has anything to learn.
        """
        self._chat, self._structure, self._rules = chat, structure, rules
        if not reads_all(structure):
            rules.check_whole()
            _check_answers_alone(chat)
        self._check = LengthCheck(paths, rules)
        source = RowSource("conversations", paths, chat, structure, rules)
        self._rows = stores.rows(source, partial(self._read, paths, stores))
        decoder, encoder = self._rows.lengths()
        alone = [np.array([number]) for number in range(len(decoder))]
        length = rules.length
        self._sequences = first_fit(decoder, length, encoder, length) if packed else alone
        self.notes = self._rows.notes
        if len(self._sequences) < len(alone):
            self.notes = [
                *self.notes,
                f"{', '.join(paths)}: data.packed puts {len(alone):,} conversations side by side, "
                f"samples: {len(self._sequences):,}",
            ]

    def _read(self, paths: Sequence[str], stores: RowStores) -> TokenizedRows:
        """Tokenize the files' records."""
        records = Records(paths, parse_conversation, self._rules.columns, self._rules.split)
        watched = stores.watched(records)
        made = [example for where, turns in watched for example in self._fitting(where, turns)]
        self._check.finish()
        learned = [TokenizedRow([example]) for example in made if _has_target(example)]
        if not learned:
            raise DataError(
                f"{', '.join(paths)}: nothing is learned of any record: no answer has a weight, or "
                "none is left of the answers in data.sequence_length"
            )
        notes = [*records.notes(), *self._check.notes()]
        if without := len(made) - len(learned):
            notes.append(
                f"{', '.join(paths)}: {without:,} of {len(made):,} conversations have nothing to "
                "learn and are left out"
            )
        return TokenizedRows.of(learned, notes)

    def _fitting(self, where: str, turns: Sequence[Turn]) -> list[Example]:
        """A conversation's example, or what becomes of one that is too long."""
        with located(where):
            example = self._example(turns)
        if self._check.fits(where, len(example), example.encoder_length):
            return [example]
        if self._rules.long_rows == "truncate":
            return [cut_rows(example, self._rules.length)]
        if self._rules.long_rows == "drop":
            return []
        with located(where):
            return self._split(turns) if self._rules.long_rows == "split" else self._first(turns)

    def _example(self, turns: Sequence[Turn]) -> Example:
        return learned_example(self._chat, self._structure, turns)

    def _split(self, turns: Sequence[Turn]) -> list[Example]:
        """Examples of as many rounds as fit, each behind the conversation's system message."""
        system, rounds = rounds_of(turns)
        done: list[Example] = []
        held: list[Turn] = []
        for one in rounds:
            together = self._example([*system, *held, *one])
            if held and len(together) <= self._rules.length:
                held, done[-1] = [*held, *one], together
                continue
            alone = self._example([*system, *one]) if held else together
            if len(alone) <= self._rules.length:
                held = one
                done.append(alone)
            else:
                held = []
                self._check.left_out += 1
        self._check.parts += len(done)
        return done

    def _first(self, turns: Sequence[Turn]) -> list[Example]:
        """The example of as many rounds as fit from the first on; none if that doesn't."""
        system, rounds = rounds_of(turns)
        while rounds := rounds[:-1]:
            example = self._example([*system, *chain(*rounds)])
            if len(example) <= self._rules.length:
                self._check.parts += 1
                return [example]
        return []

    @property
    def num_examples(self) -> int:
        """Conversations that are learned, several of which may be in a sequence."""
        return len(self._rows)

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, number: int) -> Example:
        numbers = self._sequences[number % len(self)]
        return pack([self._rows.example(int(one)) for one in numbers])


def _check_answers_alone(chat: Chat) -> None:
    if chat.learned != ANSWERS:
        raise ConfigError(
            f"--data.learned {list(chat.learned)}: an encoder-decoder, and a model whose answer "
            "fills a mask, learn the last answer of a conversation alone: leave it out"
        )


@contextmanager
def located(where: str) -> Iterator[None]:
    """Name the place of a record in what is wrong with it."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _has_target(example: Example) -> bool:
    return bool((example.labels != IGNORE).any())


@dataclass(frozen=True)
class ReadRankings:
    """The rankings of files that fit a sequence.

    Attributes:
        rankings: as they were written.
        items: the examples of each one's answers, best first.
        notes: what of the files is not read or was left out.
    """

    rankings: list[Ranking]
    items: list[list[Example]]
    notes: list[str]

    @property
    def num_equal(self) -> int:
        """Rankings of which answers are equal, token by token."""
        return sum(len(set(first_equals(item))) < len(item) for item in self.items)

    @property
    def has_pair(self) -> bool:
        """Whether answers of any ranking differ."""
        return any(len(set(first_equals(item))) > 1 for item in self.items)


def read_rankings(
    paths: Sequence[str],
    rules: RowRules,
    parse: Callable[[Record], Ranking],
    make: Callable[[Sequence[Turn], str], Example],
    stores: RowStores = NOWHERE,
) -> ReadRankings:
    """Read files of rankings; see :class:`Conversations`.

    Args:
        paths: of the files.
        rules: how records are read.
        parse: makes a ranking of a record.
        make: makes an example of the turns before an answer and its text.
        stores: that are told how far it is.
    """
    rules.check_whole()
    check, apart = LengthCheck(paths, rules), 0
    records = Records(paths, parse, rules.columns, rules.split)
    rankings: list[Ranking] = []
    items: list[list[Example]] = []
    for where, ranking in stores.watched(records):
        with located(where):
            item = [make(turns[:-1], turns[-1].text) for turns in ranking.conversations]
        if check.fits(where, *(max(len(e), e.encoder_length) for e in item)):
            rankings.append(ranking)
            items.append(item)
        apart += len({turns[:-1] for turns in ranking.conversations}) > 1
    check.finish()
    notes = [*records.notes(), *check.notes()]
    if apart:
        notes.append(
            f"{', '.join(paths)}: {apart:,} rankings compare answers to different conversations"
        )
    return ReadRankings(rankings, items, notes)


@dataclass(frozen=True)
class Ranked:
    """A ranking as examples.

    Attributes:
        answers: each after its prompt, best first.
        levels: of each answer; a better one must score more than a worse one by what their levels
            differ by. All 0 without margins.
    """

    answers: list[Example]
    levels: list[float]

    @classmethod
    def of(cls, answers: list[Example], margins: Sequence[float], factor: float) -> "Ranked":
        """A ranking whose margins count ``factor`` times."""
        below = [factor * sum(margins[:number]) for number in range(len(answers))]
        return cls(answers, [0.0 - margin for margin in below])


class RankedAnswers:
    """Rankings as examples: item i is the answers of ranking i after its prompt, best first.

    Attributes:
        has_margins: whether a record has margins that are read.
        notes: what of the files is not read or was left out.
    """

    def __init__(
        self,
        paths: Sequence[str],
        chat: Chat,
        structure: Structure,
        rules: RowRules,
        margin: float = 0.0,
        stores: RowStores = NOWHERE,
    ) -> None:
        """Read files; see :class:`Conversations`.

        Args:
            paths: of the files.
            chat: writes conversations as tokens.
            structure: encoder-decoder, causal or prefix.
            rules: how records are read.
            margin: factor of the records' margins; 0: they are not read.
            stores: where what was tokenized is kept.

        Raises:
            DataError: a record is malformed or too long.
        """
        self._margin = margin
        kind = "scored rankings with margins" if margin else "scored rankings"
        source = RowSource(kind, paths, chat, structure, rules)
        self._rows = stores.rows(source, partial(self._read, source, stores))
        self.has_margins = self._rows.has_numbers
        self.notes = self._rows.notes

    def _read(self, source: RowSource, stores: RowStores) -> TokenizedRows:
        """Tokenize the files' records; beside each ranking are its margins."""
        make = partial(answer_example, source.chat, source.structure)
        parse = parse_with_margin if self._margin else parse_ranking
        read = read_rankings(source.paths, source.rules, parse, make, stores)
        notes = [*read.notes, *notes_of_pairs(read, source.paths)]
        pairs = zip(read.items, read.rankings, strict=True)
        return TokenizedRows.of([TokenizedRow(item, one.margins) for item, one in pairs], notes)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Ranked:
        row = self._rows[number % len(self)]
        return Ranked.of(row.examples, row.numbers, self._margin)


def notes_of_pairs(read: ReadRankings, paths: Sequence[str]) -> list[str]:
    """What a run should know of rankings with equal answers.

    Raises:
        DataError: no answers differ.
    """
    files = ", ".join(paths)
    if not read.has_pair:
        raise DataError(
            f"{files}: no ranking has two answers that differ: give answers of different "
            "quality, best first"
        )
    if not read.num_equal:
        return []
    return [
        f"{files}: {read.num_equal:,} of {len(read.items):,} rankings have equal answers; pairs of "
        "them are neither learned nor counted in the accuracy"
    ]


@dataclass(frozen=True)
class Question(Prompt):
    """A prompt, and the record that it was made of.

    Attributes:
        text: its last turn, as a user wrote it.
        where: the place of its record, such as ``file:line``.
        row: the record, as the file has it.
    """

    text: str = field(default="", compare=False)
    where: str = field(default="", compare=False)
    row: Record = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, prompt: Prompt, text: str, where: str, row: Record) -> "Question":
        """The question that a prompt asks."""
        return cls(**vars(prompt), text=text, where=where, row=row)


class Prompts:
    """Prompts for rollouts and samples; with ``keep_rows`` each is a :class:`Question`.

    Attributes:
        texts: the last turn of each, as a user wrote it.
        notes: what of the files is not read or was left out.
    """

    def __init__(
        self,
        paths: Sequence[str],
        chat: Chat,
        structure: Structure,
        rules: RowRules,
        keep_rows: bool = False,
    ) -> None:
        """Read files; see :class:`Conversations`."""
        rules.check_whole()
        check = LengthCheck(paths, rules)
        parse = partial(_parse_question, keep_row=keep_rows)
        records = Records(paths, parse, rules.columns, rules.split)
        self._prompts: list[Prompt] = []
        self.texts: list[str] = []
        for where, (turns, row) in records:
            with located(where):
                prompt = prompt_of(chat, structure, turns)
            if not (prompt.encoder_tokens if structure.is_encoder_decoder else prompt.tokens):
                raise DataError(f"{where}: the prompt has no tokens: an answer starts from one")
            if check.fits(where, len(prompt.tokens), len(prompt.encoder_tokens)):
                text = turns[-1].whole
                kept = Question.of(prompt, text, where, row) if keep_rows else prompt
                self._prompts.append(kept)
                self.texts.append(text)
        check.finish()
        self.notes = [*records.notes(), *check.notes()]

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, number: int) -> Prompt:
        return self._prompts[number % len(self)]

    def __iter__(self) -> Iterator[Prompt]:
        """Each once; numbers go on beyond an epoch."""
        return iter(self._prompts)


def _parse_question(record: Record, keep_row: bool) -> tuple[Turns, Record]:
    """The conversation of a prompt; and its whole record, which then counts as read."""
    fields = Fields.of(record)
    turns = parse_prompt(fields)
    if not keep_row:
        return turns, {}
    fields.pass_over_all()
    return turns, fields.whole


@dataclass(frozen=True)
class RankingBatch:
    """P rankings of up to K answers as one batch.

    Attributes:
        batch: [P, S]; the answers of a ranking share a sequence, unseen by each other.
        sequences: int64 [P, K], the sequence of each answer.
        ends: int64 [P, K], the row of each answer's last token in its sequence.
        valid: bool [P, K], False after the answers of a shorter ranking.
        same: int64 [P, K], the first answer of the ranking with the same tokens, perhaps itself.
    """

    batch: Batch
    sequences: Tensor
    ends: Tensor
    valid: Tensor
    same: Tensor


def ranking_batch(rankings: Sequence[list[Example]], sample_ids: Sequence[int]) -> RankingBatch:
    """Put each ranking's answers into one sequence, and all of them into a batch."""
    most = max(len(ranking) for ranking in rankings)
    shape = (len(rankings), most)
    sequences = torch.arange(shape[0])[:, None].repeat(1, most)
    ends, valid = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    same = torch.zeros(shape, dtype=torch.int64)
    for p, ranking in enumerate(rankings):
        last = np.cumsum([len(example) for example in ranking]) - 1
        ends[p, : len(ranking)], valid[p, : len(ranking)] = torch.from_numpy(last), True
        same[p, : len(ranking)] = torch.tensor(first_equals(ranking))
    batch = collate([pack(ranking) for ranking in rankings], sample_ids)
    return RankingBatch(batch, sequences, ends, valid, same)


def first_equals(ranking: Sequence[Example]) -> list[int]:
    """The number of the first answer with the same tokens, for each answer of a ranking."""
    streams = [[e.decoder, *([] if e.encoder is None else [e.encoder])] for e in ranking]
    tokens = [
        [example.labels.tolist(), *(stream.tokens.tolist() for stream in parts)]
        for example, parts in zip(ranking, streams, strict=True)
    ]
    return [tokens.index(own) for own in tokens]
