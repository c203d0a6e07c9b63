"""Datasets of the stages after pretraining: conversations, rankings, prompts."""

from collections.abc import Sequence

import numpy as np
import torch

from megalite.data.chat import Chat, answer_example, conversation_example
from megalite.data.example import Example, collate, decoder_example, encoder_decoder_example, pack
from megalite.data.formats import (
    Ranking,
    Turn,
    parse_conversation,
    parse_prompt,
    parse_ranking,
    read_rows,
)
from megalite.data.packing import first_fit
from megalite.data.structure import Structure
from megalite.errors import DataError
from megalite.generation.prompts import Prompt


class Conversations:
    """SFT samples; with ``packed`` several conversations share a row, unseen by each other."""

    def __init__(
        self, paths: Sequence[str], chat: Chat, structure: Structure, length: int, packed: bool
    ) -> None:
        """Read and tokenize files.

        Args:
            paths: of JSONL, JSON or Parquet files.
            chat: writes conversations as tokens.
            structure: encoder-decoder, causal or prefix.
            length: most tokens of a row.
            packed: whether rows are shared.

        Raises:
            DataError: a row is malformed, or longer than ``length``.
        """
        conversations = read_rows(paths, parse_conversation)
        self._chat, self._structure = chat, structure
        self._examples = [self._example(turns) for turns in conversations]
        lengths = [max(len(e), e.encoder_length) for e in self._examples]
        check_lengths(lengths, length, paths)
        alone = [[number] for number in range(len(lengths))]
        self._rows = first_fit(lengths, length) if packed else alone

    def _example(self, turns: Sequence[Turn]) -> Example:
        if not self._structure.is_encoder_decoder:
            return conversation_example(self._chat.pieces(turns), self._structure.is_prefix)
        last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
        prompt = self._chat.prompt(turns[:last])
        answer = self._chat.answer(turns[last].text)
        return answer_example(prompt, answer, self._structure.start_id)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, number: int) -> Example:
        return pack([self._examples[i] for i in self._rows[number]])


def check_lengths(lengths: Sequence[int], most: int, paths: Sequence[str]) -> None:
    """Refuse samples that don't fit a row.

    Raises:
        DataError: it says how many and the longest.
    """
    long = [i for i, length in enumerate(lengths) if length > most]
    if long:
        raise DataError(
            f"{', '.join(map(str, paths))}: {len(long)} of {len(lengths)} samples are longer than "
            f"sequence_length {most}, the first is row {long[0] + 1} with {lengths[long[0]]} "
            f"tokens: raise it to {max(lengths)} or drop them"
        )


class RankedAnswers:
    """Rankings as examples: item i is the answers of ranking i behind its prompt, best first."""

    def __init__(self, paths: Sequence[str], chat: Chat, structure: Structure, length: int) -> None:
        """Read files; see :class:`Conversations`."""
        rankings = read_rows(paths, parse_ranking)
        self._items = [self._answers(ranking, chat, structure) for ranking in rankings]
        longest = [max(max(len(e), e.encoder_length) for e in item) for item in self._items]
        check_lengths(longest, length, paths)

    @staticmethod
    def _answers(ranking: Ranking, chat: Chat, structure: Structure) -> list[Example]:
        prompt = chat.prompt(ranking.prompt)
        answers = [chat.answer(text) for text in ranking.answers]
        return [scored_example(prompt, answer, structure) for answer in answers]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> list[Example]:
        return self._items[number]


def scored_example(prompt: list[int], answer: list[int], structure: Structure) -> Example:
    """What a reward model reads of an answer; the value at its last token counts."""
    if structure.is_encoder_decoder:
        tokens = np.array([structure.start_id, *answer])
        return encoder_decoder_example(np.array(prompt), tokens, np.full(len(tokens), -100))
    tokens = np.array([*prompt, *answer])
    prefix = len(prompt) if structure.is_prefix else 0
    return decoder_example(tokens, np.full(len(tokens), -100), prefix)


class Prompts:
    """Prompts for rollouts and samples."""

    def __init__(self, paths: Sequence[str], chat: Chat, structure: Structure, length: int) -> None:
        """Read files; see :class:`Conversations`."""
        turns = read_rows(paths, parse_prompt)
        self._prompts = [as_prompt(chat.prompt(one), structure) for one in turns]
        self.texts = [one[-1].text for one in turns]
        lengths = [max(len(p.tokens), len(p.encoder_tokens)) for p in self._prompts]
        check_lengths(lengths, length, paths)

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, number: int) -> Prompt:
        return self._prompts[number]


def as_prompt(tokens: list[int], structure: Structure) -> Prompt:
    """What an answer of this structure starts from."""
    if structure.is_encoder_decoder:
        return Prompt([structure.start_id], encoder_tokens=tokens)
    return Prompt(tokens, prefix=len(tokens) if structure.is_prefix else 0)


def ranking_batch(rankings: Sequence[list[Example]], sample_ids: Sequence[int]):
    """Several rankings as one batch: the answers of each share a row, unseen by each other.

    Returns:
        The Batch [P, S], and rows, ends and valid [P, K] as ``Rankings`` wants them.
    """
    most = max(len(ranking) for ranking in rankings)
    shape = (len(rankings), most)
    rows = torch.arange(shape[0])[:, None].repeat(1, most)
    ends, valid = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.bool)
    for p, ranking in enumerate(rankings):
        last = np.cumsum([len(example) for example in ranking]) - 1
        ends[p, : len(ranking)], valid[p, : len(ranking)] = torch.from_numpy(last), True
    return collate([pack(ranking) for ranking in rankings], sample_ids), rows, ends, valid
