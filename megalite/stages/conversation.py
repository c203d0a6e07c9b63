"""What the stages after pretraining share: tokenizer, chat, structure, samples."""

from collections.abc import Sequence

import torch
from pydantic import Field

from megalite.config.section import Section
from megalite.data.chat.datasets import Prompts
from megalite.data.chat.templates import Chat
from megalite.data.config import ConversationConfig, CorpusConfig, TokenizerConfig
from megalite.data.loader import Share
from megalite.data.structure import AnswerBlank, Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.distributed.mesh import Mesh
from megalite.engine.model import Model
from megalite.errors import ConfigError
from megalite.generation.decoder import CachedDecoder, Forward
from megalite.generation.generate import Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits
from megalite.stages.setup import Stage
from megalite.training.config import TrainConfig


class SamplesConfig(Section):
    """Answers to a few prompts, written at the end of a run."""

    prompts: tuple[str, ...] = Field((), description="files of prompts; empty: no samples")
    count: int = Field(8, ge=1, description="prompts answered")
    max_new_tokens: int = Field(48, ge=1, description="most tokens of an answer")
    temperature: float = Field(0.0, ge=0, description="0 always takes the likeliest token")


def open_chat(
    tokenizer: TokenizerConfig, data: ConversationConfig, model: ModelConfig
) -> tuple[Chat, Structure]:
    """The chat template and structure of a run.

    Raises:
        ConfigError: the tokenizer has more tokens than the model.
        DataError: the tokenizer can't be read.
    """
    chat = Chat(data.template, load_tokenizer(tokenizer.path))
    check_vocabulary(chat.tokenizer, model)
    return chat, structure_of(data, chat.tokenizer, model)


def structure_of(
    data: ConversationConfig | CorpusConfig, tokenizer: Tokenizer, model: ModelConfig
) -> Structure:
    """How the data of a model is laid out.

    Raises:
        DataError: the tokenizer lacks a token that ``data`` names.
    """
    blank = None
    if isinstance(data, ConversationConfig) and data.answer_mask:
        blank = AnswerBlank(
            tokenizer.token_id(data.answer_mask), tokenizer.token_id(data.answer_start)
        )
    return Structure(
        model.is_encoder_decoder,
        data.prefix,
        tokenizer.token_id(data.decoder_start) if data.decoder_start else tokenizer.pad_id,
        blank,
        model.rope_axes if model.position == "rope" else 1,
    )


def check_vocabulary(tokenizer: Tokenizer, model: ModelConfig) -> None:
    """Refuse a tokenizer that the model has no embeddings for.

    Raises:
        ConfigError: it says which size to set.
    """
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"--model.vocab_size {model.vocab_size}: must be at least {tokenizer.vocab_size}, the "
            f"tokens of {tokenizer.path}"
        )


def share_of(train: TrainConfig, mesh: Mesh) -> Share:
    """This data-parallel rank's share of each step's samples."""
    return Share(train.global_batch_size, train.micro_batch_size, mesh.dp.rank, mesh.dp.size)


def decode_with(model: Model) -> Forward:
    """The model as a function of a batch and a cache: logits [B, S, V]."""
    device = model.mesh.device

    def forward(batch, cache) -> torch.Tensor:
        return model.evaluate([batch.to(device)], Logits(), cache)[0].cpu()

    return forward


def answer_prompts(
    model: Model, prompts: Sequence[Prompt], sampling: SamplingConfig, tokenizer: Tokenizer
) -> list[list[int]]:
    """Answers to prompts, as tokens without their end.

    Comm: every process calls it; parameters are gathered over shard once.
    """
    ends = [] if tokenizer.end_id is None else [tokenizer.end_id]
    batch = batch_prompts(prompts, range(len(prompts)), tokenizer.pad_id)
    with model.gathered():
        decoder = CachedDecoder(decode_with(model), batch, sampling.max_new_tokens)
        ending = Ending(ends, tokenizer.pad_id)
        answers = generate(decoder, batch, sampling, ending)
    rows = [answers.answer(number) for number in range(len(prompts))]
    return [[token for token in row if token not in ends] for row in rows]


def write_samples(
    stage: Stage,
    model: Model,
    config: SamplesConfig,
    chat: Chat,
    structure: Structure,
) -> None:
    """Answer the configured prompts and write them to samples.jsonl."""
    if not config.prompts:
        return
    prompts = Prompts(config.prompts, chat, structure, stage.config.model.max_positions)
    count = min(config.count, len(prompts))
    sampling = SamplingConfig(
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        seed=stage.config.run.seed,
    )
    chosen = [prompts[i] for i in range(count)]
    answers = answer_prompts(model, chosen, sampling, chat.tokenizer)
    stage.log.samples(
        [
            {"prompt": prompts.texts[i], "answer": chat.tokenizer.decode(answers[i])}
            for i in range(count)
        ]
    )
