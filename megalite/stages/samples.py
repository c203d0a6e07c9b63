"""Answers of a model that is spread over processes, and those that a run writes at its end."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from megalite.config.section import Section
from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Prompts
from megalite.data.chat.long_rows import RowRules
from megalite.engine.model import Model
from megalite.engine.pipeline import Pipeline
from megalite.generation.answer import SLOTS, Asked, answer
from megalite.generation.decoder import Forward, Pipelined, Take
from megalite.generation.generate import Ending
from megalite.generation.prompts import Prompt
from megalite.generation.sampling import SamplingConfig
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.context import KeyValueCache
from megalite.models.outputs import LAST_ROW, Output
from megalite.stages.conversation import ChatFormat
from megalite.stages.positions import check_positions
from megalite.stages.setup import Stage


class SamplesConfig(Section):
    """Answers to a few prompts, written at the end of a run."""

    prompts: tuple[str, ...] = Field((), description="files of prompts; empty: no samples")
    count: int = Field(8, ge=1, description="number of prompts that are answered")
    max_new_tokens: int = Field(48, ge=1, description="largest number of tokens per answer")
    temperature: float = Field(
        0.0, ge=0, description="divisor of the logits; 0: always the likeliest token"
    )


def decode_with(model: Model) -> Forward:
    """The model as a function of a batch and a cache, on its device.

    Passes of a pipeline overlap; :func:`bubble_of_answers` tells how busy they keep its stages.
    """
    device = model.mesh.device
    if isinstance(model, Pipeline):
        passes = model.passes()

        def begin(batch: Batch, cache: KeyValueCache, output: Output) -> Take:
            return passes.begin(batch.to(device), cache, output)

        return Pipelined(begin, model.groups)

    def forward(batch: Batch, cache: KeyValueCache, output: Output = LAST_ROW) -> Tensor:
        result: Tensor = model.evaluate([batch.to(device)], output, cache)[0]
        return result

    return forward


def bubble_of_answers(model: Model) -> float | None:
    """The bubble of the answers for which :func:`decode_with` was called last.

    Comm: all-reduce of a number over pp.

    Returns:
        The share of the time in which a pipeline's stage computed nothing, a mean over stages;
        None of a model that is whole.
    """
    if not isinstance(model, Pipeline) or model.last_passes is None:
        return None
    return model.last_passes.bubble()


def answer_prompts(
    model: Model, prompts: Sequence[Prompt], sampling: SamplingConfig, chat: Chat
) -> list[list[int]]:
    """Answers to prompts, as tokens without their end.

    Comm: every process calls it; parameters are gathered over shard once.
    """
    ends = chat.end_ids
    ending = Ending(ends, chat.tokenizer.pad_id)
    asked = Asked(prompts, range(len(prompts)), SLOTS, model.mesh.device)
    with model.gathered():
        answers = answer(decode_with(model), asked, sampling, ending)
    sequences = [answers.answer(number) for number in range(len(prompts))]
    return [[token for token in tokens if token not in ends] for tokens in sequences]


@dataclass(frozen=True)
class Samples:
    """The prompts that a run answers at its end, read before it starts.

    Attributes:
        config: how they are answered.
        chat: how prompts and answers are written.
        prompts: as the model reads them.
        texts: the last turn of each, as a user wrote it.
        notes: what of the files is not read.
    """

    config: SamplesConfig
    chat: Chat
    prompts: list[Prompt]
    texts: list[str]
    notes: list[str]

    @classmethod
    def read(
        cls, config: SamplesConfig, chat_format: ChatFormat, model: ModelConfig
    ) -> "Samples | None":
        """Read the configured prompts; None without any.

        Raises:
            ConfigError: a prompt and its answer need more positions than the model has.
            DataError: a file of prompts is missing or malformed.
        """
        if not config.prompts:
            return None
        chat, structure = chat_format.chat, chat_format.structure
        found = Prompts(config.prompts, chat, structure, RowRules(sys.maxsize))
        prompts = [found[i] for i in range(min(config.count, len(found)))]
        for number, prompt in enumerate(prompts, 1):
            rows = len(prompt.tokens) + config.max_new_tokens
            key = f"samples.prompts: prompt {number} with samples.max_new_tokens"
            check_positions(model, max(rows, len(prompt.encoder_tokens)), key)
        return cls(config, chat, prompts, found.texts[: len(prompts)], found.notes)


def write_samples(stage: Stage, model: Model, samples: Samples | None) -> None:
    """Answer the prompts of a run's samples and write them to samples.jsonl."""
    if samples is None:
        return
    config, tokenizer = samples.config, samples.chat.tokenizer
    stage.say(samples.notes)
    sampling = SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=stage.config.run.seed,
    )
    answers = answer_prompts(model, samples.prompts, sampling, samples.chat)
    stage.log.samples(
        [
            {"prompt": text, "answer": tokenizer.decode(answer)}
            for text, answer in zip(samples.texts, answers, strict=True)
        ]
    )
