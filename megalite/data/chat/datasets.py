"""Datasets of the stages after pretraining: conversations, rankings, prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from megalite.data.chat.segments import conversation_example
from megalite.data.chat.templates import Chat
from megalite.data.chat.turns import (
    Ranking,
    Turn,
    parse_conversation,
    parse_prompt,
    parse_ranking,
)
from megalite.data.example import Example, collate, pack
from megalite.data.layout import as_prompt, paired_example, scored_example
from megalite.data.packing import first_fit
from megalite.data.records import located_records
from megalite.data.structure import Structure
from megalite.errors import DataError
from megalite.generation.prompts import Prompt
from megalite.models.batch import Batch


class Conversations:
    """SFT samples; with ``packed`` several conversations share a sequence, unseen by each other."""

    def __init__(
        self, paths: Sequence[str], chat: Chat, structure: Structure, length: int, packed: bool
    ) -> None:
        """Read and tokenize files.

        Args:
            paths: of JSONL, JSON or Parquet files.
            chat: writes conversations as tokens.
            structure: encoder-decoder, causal or prefix.
            length: most tokens of a sequence.
            packed: whether conversations share sequences.

        Raises:
            DataError: a record is malformed, or longer than ``length``.
        """
        self._chat, self._structure = chat, structure
        check = LengthCheck(length)
        self._examples: list[Example] = []
        for where, turns in located_records(paths, parse_conversation):
            example = self._example(turns)
            check.add(where, len(example), example.encoder_length)
            self._examples.append(example)
        check.finish()
        decoder = [len(e) for e in self._examples]
        encoder = [e.encoder_length for e in self._examples]
        alone = [np.array([number]) for number in range(len(decoder))]
        self._sequences = first_fit(decoder, length, encoder, length) if packed else alone

    def _example(self, turns: Sequence[Turn]) -> Example:
        """All answers are learned where the decoder reads the whole conversation, else the last."""
        if not self._structure.is_encoder_decoder and self._structure.blank is None:
            return conversation_example(self._chat.segments(turns), self._structure.is_prefix)
        last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
        prompt = np.array(self._chat.prompt(turns[:last]))
        return paired_example(
            prompt, np.array(self._chat.answer(turns[last].text)), self._structure
        )

    def __len__(self) -> int:
        return len(self._sequences)

    def __getitem__(self, number: int) -> Example:
        return pack([self._examples[i] for i in self._sequences[number % len(self)]])


class LengthCheck:
    """Refuses files with records that don't fit a sequence; names the first."""

    def __init__(self, most: int) -> None:
        """Allow ``most`` tokens."""
        self._most, self._count = most, 0
        self._first, self._long, self._longest = "", 0, 0

    def add(self, where: str, *lengths: int) -> None:
        """Count a record by its place and the tokens of its streams."""
        longest = max(lengths)
        self._count += 1
        if longest <= self._most:
            return
        if not self._long:
            self._first = f"{where}: has {longest} tokens, sequence_length is {self._most}"
        self._long += 1
        self._longest = max(self._longest, longest)

    def finish(self) -> None:
        """Refuse, if any record was too long.

        Raises:
            DataError: it says where the first is, how many there are and how long.
        """
        if self._long:
            raise DataError(
                f"{self._first}; {self._long} of {self._count} records are longer: raise it to "
                f"{self._longest} or drop them"
            )


class RankedAnswers:
    """Rankings as examples: item i is the answers of ranking i after its prompt, best first."""

    def __init__(self, paths: Sequence[str], chat: Chat, structure: Structure, length: int) -> None:
        """Read files; see :class:`Conversations`."""
        check = LengthCheck(length)
        self._items: list[list[Example]] = []
        for where, ranking in located_records(paths, parse_ranking):
            item = self._answers(ranking, chat, structure)
            check.add(where, *(max(len(e), e.encoder_length) for e in item))
            self._items.append(item)
        check.finish()

    @staticmethod
    def _answers(ranking: Ranking, chat: Chat, structure: Structure) -> list[Example]:
        prompt = np.array(chat.prompt(ranking.prompt))
        answers = [np.array(chat.answer(text)) for text in ranking.answers]
        return [scored_example(prompt, answer, structure) for answer in answers]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> list[Example]:
        return self._items[number % len(self)]


class Prompts:
    """Prompts for rollouts and samples.

    Attributes:
        texts: the last turn of each, as a user wrote it.
    """

    def __init__(self, paths: Sequence[str], chat: Chat, structure: Structure, length: int) -> None:
        """Read files; see :class:`Conversations`."""
        check = LengthCheck(length)
        self._prompts: list[Prompt] = []
        self.texts: list[str] = []
        for where, turns in located_records(paths, parse_prompt):
            prompt = as_prompt(chat.prompt(turns), structure)
            check.add(where, len(prompt.tokens), len(prompt.encoder_tokens))
            self._prompts.append(prompt)
            self.texts.append(turns[-1].whole)
        check.finish()

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, number: int) -> Prompt:
        return self._prompts[number % len(self)]


@dataclass(frozen=True)
class RankingBatch:
    """P rankings of up to K answers as one batch.

    Attributes:
        batch: [P, S]; the answers of a ranking share a sequence, unseen by each other.
        sequences: int64 [P, K], the sequence of each answer.
        ends: int64 [P, K], the row of each answer's last token in its sequence.
        valid: bool [P, K], False after the answers of a shorter ranking.
    """

    batch: Batch
    sequences: Tensor
    ends: Tensor
    valid: Tensor


def ranking_batch(rankings: Sequence[list[Example]], sample_ids: Sequence[int]) -> RankingBatch:
    """Put each ranking's answers into one sequence, and all of them into a batch."""
    most = max(len(ranking) for ranking in rankings)
    shape = (len(rankings), most)
    sequences = torch.arange(shape[0])[:, None].repeat(1, most)
    ends, valid = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    for p, ranking in enumerate(rankings):
        last = np.cumsum([len(example) for example in ranking]) - 1
        ends[p, : len(ranking)], valid[p, : len(ranking)] = torch.from_numpy(last), True
    batch = collate([pack(ranking) for ranking in rankings], sample_ids)
    return RankingBatch(batch, sequences, ends, valid)
