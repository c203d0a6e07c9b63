"""Preferences: answers whose own tokens are targets, and which of them is better."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any

import numpy as np

from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import (
    ReadRankings,
    first_equals,
    notes_of_pairs,
    read_rankings,
)
from megalite.data.chat.examples import preferred_example
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.row_source import RowSource
from megalite.data.chat.row_store import NOWHERE, RowStores
from megalite.data.chat.tokenized import TokenizedRow, TokenizedRows
from megalite.data.chat.turns import Turns, parse_judged, parse_ranking
from megalite.data.example import Example, cut_rows
from megalite.data.structure import Structure
from megalite.errors import DataError

Pair = tuple[int, int]


@dataclass(frozen=True)
class Comparison:
    """The answers of one record.

    Attributes:
        answers: each after its prompt, all its tokens targets; best first.
        num_good: how many of them, from the best on, are good by themselves.
        other: the prompt with an answer to another one, or None.
    """

    answers: Sequence[Example]
    num_good: int = 1
    other: Example | None = None

    @property
    def pairs(self) -> list[Pair]:
        """Each two answers that differ: the better one's number and the worse one's."""
        same = first_equals(self.answers)
        count = range(len(self.answers))
        return [(i, j) for i in count for j in count if i < j and same[i] != same[j]]

    @property
    def judged(self) -> list[bool]:
        """Which answers are not the same as a better one."""
        return [first == number for number, first in enumerate(first_equals(self.answers))]

    @property
    def examples(self) -> list[Example]:
        """The answers, and the answer to another prompt if there is one."""
        return [*self.answers, *([] if self.other is None else [self.other])]


class PreferredAnswers:
    """Comparisons by number.

    Attributes:
        notes: what of the files is not read or was left out.
    """

    def __init__(
        self,
        paths: Sequence[str],
        chat: Chat,
        structure: Structure,
        rules: RowRules,
        is_judged: bool = False,
        stores: RowStores = NOWHERE,
    ) -> None:
        """Read files of rankings; see :class:`megalite.data.chat.datasets.Conversations`.

        Args:
            paths: of the files.
            chat: writes conversations as tokens.
            structure: encoder-decoder, causal or prefix.
            rules: how records are read.
            is_judged: whether an answer is good or bad by itself (KTO): records of one answer with
                a ``label`` are read, and each comparison has an answer to another prompt.
            stores: where what was tokenized is kept.

        Raises:
            DataError: a record is malformed or too long, or there is nothing to compare.
        """
        self._is_judged, self._length = is_judged, rules.length
        kind = "judged answers" if is_judged else "compared answers"
        source = RowSource(kind, paths, chat, structure, rules)
        self._rows = stores.rows(source, partial(self._read, source, stores))
        self.notes = self._rows.notes

    def _read(self, source: RowSource, stores: RowStores) -> TokenizedRows:
        """Tokenize the files' records; beside each is how many of its answers are good."""
        make = partial(preferred_example, source.chat, source.structure)
        parse, paths = parse_judged if self._is_judged else parse_ranking, source.paths
        read = read_rankings(paths, source.rules, parse, make, stores)
        notes = [*read.notes, *([] if self._is_judged else notes_of_pairs(read, paths))]
        others: list[list[Example]] = [[] for _ in read.items]
        if self._is_judged:
            _check_judged(read, paths)
            following = _with_other_prompts([r.conversations[0][:-1] for r in read.rankings])
            others = [[self._mismatched(read, *pair, make)] for pair in enumerate(following)]
        rows = zip(read.items, others, read.rankings, strict=True)
        return TokenizedRows.of(
            [TokenizedRow([*item, *more], (one.num_good,)) for item, more, one in rows], notes
        )

    def _mismatched(self, read: ReadRankings, number: int, other: int, make: Any) -> Example:
        """A record's prompt with the best answer of another, cut where it is too long."""
        turns = read.rankings[number].conversations[0][:-1]
        example: Example = make(turns, read.rankings[other].conversations[0][-1].text)
        return example if len(example) <= self._length else cut_rows(example, self._length)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Comparison:
        row = self._rows[number % len(self)]
        answers, good = row.examples, int(row.numbers[0])
        return (
            Comparison(answers[:-1], good, answers[-1])
            if self._is_judged
            else Comparison(answers, good)
        )

    def fingerprint(self) -> str:
        """Of every row of every example; 16 bytes in hexadecimal."""
        digest = hashlib.blake2b(digest_size=16)
        for number in range(len(self)):
            for example in self[number].examples:
                digest.update(b"example")
                for array in _arrays(example):
                    digest.update(f"{array.dtype}{array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def _arrays(value: object) -> Iterator[Any]:
    """The arrays in a dataclass and those in it, in the order of their fields."""
    if is_dataclass(value):
        for field in fields(value):
            yield from _arrays(getattr(value, field.name))
    elif value is not None:
        yield value


def _with_other_prompts(prompts: Sequence[Turns]) -> list[int]:
    """For each record the next one, round and round, whose prompt is another."""
    count = len(prompts)
    following = [(number + 1) % count for number in range(count)]
    if len(set(prompts)) > 1:
        for number in (*reversed(range(count)), *reversed(range(count))):
            after = (number + 1) % count
            same = prompts[number] == prompts[after]
            following[number] = following[after] if same else after
    return following


def _check_judged(read: ReadRankings, paths: Sequence[str]) -> None:
    """Refuse files of one record, or in which no answer is better than another."""
    files = ", ".join(paths)
    if len(read.rankings) < 2:
        raise DataError(
            f"{files}: has one record; --loss.kind kto compares with answers to other prompts: "
            "give two or more"
        )
    has_good = any(ranking.num_good for ranking in read.rankings)
    has_bad = any(len(ranking.conversations) > ranking.num_good for ranking in read.rankings)
    if not (has_good and has_bad):
        what = "bad" if has_good else "good"
        raise DataError(
            f"{files}: no answer is {what}: --loss.kind kto learns from good and bad ones"
        )
