"""Answers of a model that is spread over processes, and those that a run writes at its end."""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from megalite.config.section import Section
from megalite.data.chat.chat import Chat
from megalite.data.chat.datasets import Prompts
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.turns import parse_prompt
from megalite.data.config import TokenizerConfig
from megalite.data.records import read_records
from megalite.data.tokenizers.load import load_tokenizer
from megalite.engine.model import Model
from megalite.generation.decoder import CachedDecoder, Forward
from megalite.generation.generate import Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.models.batch import Batch
from megalite.models.context import KeyValueCache
from megalite.models.outputs import Logits
from megalite.stages.conversation import ChatFormat
from megalite.stages.setup import Stage


class SamplesConfig(Section):
    """Answers to a few prompts, written at the end of a run."""

    prompts: tuple[str, ...] = Field((), description="files of prompts; empty: no samples")
    count: int = Field(8, ge=1, description="number of prompts that are answered")
    max_new_tokens: int = Field(48, ge=1, description="largest number of tokens per answer")
    temperature: float = Field(
        0.0, ge=0, description="divisor of the logits; 0: always the likeliest token"
    )

    def check(self, tokenizer: TokenizerConfig) -> None:
        """Refuse what can't be read, before a run instead of at its end.

        Raises:
            DataError: the tokenizer or a file of prompts is missing or malformed.
        """
        if self.prompts:
            read_records(self.prompts, parse_prompt)
            load_tokenizer(**tokenizer.model_dump())


def decode_with(model: Model) -> Forward:
    """The model as a function of a batch and a cache: the last row's logits, [B, 1, V]."""
    device = model.mesh.device

    def forward(batch: Batch, cache: KeyValueCache) -> Tensor:
        logits: Tensor = model.evaluate([batch.to(device)], Logits(last_row=True), cache)[0]
        return logits.cpu()

    return forward


def answer_prompts(
    model: Model, prompts: Sequence[Prompt], sampling: SamplingConfig, chat: Chat
) -> list[list[int]]:
    """Answers to prompts, as tokens without their end.

    Comm: every process calls it; parameters are gathered over shard once.
    """
    ends, pad = chat.end_ids, chat.tokenizer.pad_id
    batch = batch_prompts(prompts, range(len(prompts)), pad)
    with model.gathered():
        decoder = CachedDecoder(decode_with(model), batch, sampling.max_new_tokens)
        ending = Ending(ends, pad)
        answers = generate(decoder, batch, sampling, ending)
    sequences = [answers.answer(number) for number in range(len(prompts))]
    return [[token for token in tokens if token not in ends] for tokens in sequences]


def write_samples(
    stage: Stage, model: Model, config: SamplesConfig, chat_format: ChatFormat
) -> None:
    """Answer the configured prompts and write them to samples.jsonl."""
    if not config.prompts:
        return
    chat, structure = chat_format.chat, chat_format.structure
    rules = RowRules(stage.config.model.max_positions)
    prompts = Prompts(config.prompts, chat, structure, rules)
    count = min(config.count, len(prompts))
    sampling = SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=stage.config.run.seed,
    )
    chosen = [prompts[i] for i in range(count)]
    answers = answer_prompts(model, chosen, sampling, chat)
    stage.log.samples(
        [
            {"prompt": prompts.texts[i], "answer": chat.tokenizer.decode(answers[i])}
            for i in range(count)
        ]
    )
