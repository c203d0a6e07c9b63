"""Conversations of real lengths, packed for ours and padded for transformers.

A conversation's length is log-normal: its mean is ShareGPT's, 161.31 tokens of question and 337.99
of answer (Kwon et al. 2023, arXiv:2309.06180, figure 11), its sigma is 1, for the long tail of that
figure, and it is cut at Vicuna's 2048 tokens. Both sides train on the same conversations in one
optimizer step and learn the answers alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.models import random_tokens
from megalite.data.example import Example, collate, decoder_example, pack
from megalite.data.packing import first_fit
from megalite.models.batch import IGNORE, Batch
from megalite.models.config import ModelConfig

QUESTION, ANSWER, SIGMA = 161.31, 337.99, 1.0
LONGEST = 2048
PADDED_ROWS = 8  # conversations of a padded micro-batch
ROWS = 1  # packed rows of one of ours


def lengths(count: int, seed: int = 12) -> list[int]:
    """Tokens of each conversation; seed 12 wastes what the mean of many does: 2.8 rows a token."""
    middle = math.log(QUESTION + ANSWER) - SIGMA**2 / 2
    drawn = np.random.default_rng(seed).lognormal(middle, SIGMA, count)
    return [int(length) for length in drawn.clip(8, LONGEST)]


@dataclass(frozen=True)
class ConversationCase:
    """Fine-tuning, with the interface of :class:`benchmarks.models.Case`.

    Attributes:
        ours: our config.
        peer: makes the model in transformers.
        conversations: in one optimizer step for each sequence of the plain benchmark's batch.
    """

    ours: Callable[[], ModelConfig]
    peer: Callable[[], Any]
    conversations: int = 4

    def _texts(self, size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Tokens and labels of each conversation."""
        texts = []
        for number, count in enumerate(lengths(size * self.conversations)):
            tokens = random_tokens(1, count, number)[0]
            question = round(count * QUESTION / (QUESTION + ANSWER))
            labels = torch.where(torch.arange(count) < question, IGNORE, tokens)
            texts.append((tokens, labels))
        return texts

    def batches(self, size: int, _length: int) -> list[Batch]:
        """Ours: several conversations a row, none seeing another."""
        examples = []
        for tokens, labels in self._texts(size):
            target = torch.cat((labels[1:], labels.new_tensor([IGNORE])))
            examples.append(decoder_example(tokens.numpy(), target.numpy()))
        rows = [
            pack([examples[i] for i in row])
            for row in first_fit([len(example) for example in examples], LONGEST)
        ]
        parts: list[list[Example]] = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
        return [collate(part, range(len(part))) for part in parts]

    def peer_batches(self, size: int, _length: int) -> list[dict[str, torch.Tensor]]:
        """Theirs: a conversation a row, padded to the micro-batch's longest."""
        texts, batches = self._texts(size), []
        for at in range(0, len(texts), PADDED_ROWS):
            part = texts[at : at + PADDED_ROWS]
            stack = torch.nn.utils.rnn.pad_sequence
            tokens = stack([tokens for tokens, _ in part], batch_first=True)
            labels = stack([labels for _, labels in part], True, IGNORE)
            sizes = torch.tensor([len(tokens) for tokens, _ in part])
            mask = (torch.arange(tokens.shape[1]) < sizes[:, None]).long()
            batches.append({"input_ids": tokens, "labels": labels, "attention_mask": mask})
        return batches
