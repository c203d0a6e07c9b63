"""A stored model that writes answers: every command that lets one speak opens it here.

Tokenizer, template, structure and special tokens come with the model's run or folder where the
command's options don't name them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from pydantic import Field

from megalite.config.section import Section
from megalite.data.chat.chat import Chat
from megalite.data.chat.examples import prompt_of
from megalite.data.chat.turns import Turn
from megalite.data.config import (
    DECODER_START,
    TEMPLATE,
    ConversationConfig,
    TemplateName,
    TokenizerConfig,
)
from megalite.data.structure import Structure
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh, start_process_group
from megalite.engine.build import build_model
from megalite.engine.data_parallel import COMPUTE_DTYPES
from megalite.engine.layout import Demand, check_layout
from megalite.engine.model import Model
from megalite.errors import ConfigError, tell
from megalite.files.urls import is_url
from megalite.generation.generate import Ending
from megalite.generation.prompts import Prompt
from megalite.models.config import ModelConfig
from megalite.models.hub import HubName, folder_of, pinned
from megalite.models.hugging_face import is_hugging_face
from megalite.stages.conversation import check_vocabulary, structure_of
from megalite.stages.device import (
    Precision,
    PrecisionWish,
    check_heads,
    choose_device,
    choose_precision,
)
from megalite.stages.special_tokens import SpecialTokens
from megalite.stages.start import load_start, said_by, stored_config
from megalite.stages.told import WRITING, section_of_run, tokenizer_of
from megalite.training.config import RunConfig


class StoredModelConfig(Section):
    """A stored model, and how it is opened."""

    model: str = Field(
        description="run or checkpoint of ours, Hugging Face folder, or a model's name on the "
        "Hugging Face Hub"
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    precision: PrecisionWish = Field(
        "auto",
        description="number format of compute: fp32 (CPU only), bf16, fp16, or auto: fp32 on a "
        "CPU, on a GPU bf16 where it has it, else fp16",
    )
    template: TemplateName = Field("raw", description=TEMPLATE + "; not given: as the model's run")
    prefix: bool = Field(False, description="attention both ways between a prompt's tokens")
    decoder_start: str = Field("", description=DECODER_START)
    answer_mask: str = Field(
        "", description="mask after a prompt that the answer fills, such as [gMASK] (GLM)"
    )
    answer_start: str = Field("", description="first token of an answer, such as <sop> (GLM)")
    parallel: ParallelConfig = ParallelConfig()
    run: RunConfig = RunConfig()


class SpeakerConfig(StoredModelConfig):
    """A stored model that writes answers."""

    stop: tuple[str, ...] = Field((), description="texts that end an answer")


StoredConfigT = TypeVar("StoredConfigT", bound=StoredModelConfig)


@dataclass(frozen=True)
class Speaker:
    """A stored model as far as it is known before its weights are read.

    Attributes:
        config: how it was asked for; names on the Hub have their commits.
        launch: this process among those that share it.
        device: that computes.
        precision: of compute.
        model_config: its shape.
        chat: its tokenizer and template.
        template: name of that.
        structure: how its data is laid out.
        said: what its published config says of special tokens.
    """

    config: StoredModelConfig
    launch: Launch
    device: torch.device
    precision: Precision
    model_config: ModelConfig
    chat: Chat
    template: str
    structure: Structure
    said: SpecialTokens

    @property
    def number_bytes(self) -> int:
        """Of a number of keys and values."""
        return 4 if self.precision == "fp32" or self.device.type == "cpu" else 2

    def prompt(self, turns: Sequence[Turn]) -> Prompt:
        """What an answer to some turns starts from.

        Raises:
            DataError: the template can't write these turns.
        """
        return prompt_of(self.chat, self.structure, turns)

    def ending(self, stops: Sequence[str] = ()) -> Ending:
        """What ends an answer: what the model's config says, its template's end, and stop texts.

        Raises:
            ConfigError: a stop text has a special token inside.
        """
        ends = {*self.said.ends, *self.chat.end_ids}
        is_theirs = is_hugging_face(folder_of(self.config.model))
        if self.template == "raw" and self.said.ends and is_theirs:
            ends = set(self.said.ends)
        ids, texts = split_stops(stops, self.chat.tokenizer)
        own = self.chat.tokenizer
        return Ending(ends | ids, own.pad_id, tuple(texts), own.decode)

    def load_model(self) -> Model:
        """The model with its weights.

        Comm: as :func:`build_mesh` and the weights' reader.
        """
        return self.load_into(build_mesh(self.launch, self.config.parallel, self.device))

    def load_alone(self) -> Model:
        """The model with its weights in one process, without a process group.

        Its parameters have the number format of compute, where :meth:`load_model` keeps fp32 ones
        and computes with copies.
        """
        model = replace(self, precision="fp32").load_into(Mesh.single(self.device))
        for part in model.parts:
            part.to(COMPUTE_DTYPES[self.precision])
        return model

    def load_into(self, mesh: Mesh) -> Model:
        """The model with its weights, over the processes of a mesh."""
        parallel, precision = self.config.parallel, self.precision
        model = build_model(self.model_config, mesh, parallel, seed=0, precision=precision)
        load_start(model, self.config.model)
        return model


def open_speaker(config: StoredModelConfig, launch: Launch, converses: bool = False) -> Speaker:
    """Find out what a stored model is; its weights are not read yet.

    Args:
        config: names it.
        launch: this process among those that will share it.
        converses: whether a folder's chat template is taken where nothing names another.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: it can't be opened so.
        DataError: there is no such tokenizer.

    Comm: as :func:`with_names`.
    """
    device = choose_device(config.run, launch)
    config = with_names(config, launch, device)
    model_config, said = stored_config(config.model)[0], said_by(config.model)
    tokenizer = tokenizer_for(config)
    options = writing_of(config, tokenizer if converses else None)
    chat = Chat(options.template, tokenizer)
    check_vocabulary(chat.tokenizer, model_config)
    structure = structure_of(options, chat.tokenizer, model_config, said)
    check_layout(Demand(model_config, launch.world_size), config.parallel)
    check_heads(model_config, device, learns=False)
    precision = choose_precision(config.precision, device, "precision")
    return Speaker(
        config, launch, device, precision, model_config, chat, options.template, structure, said
    )


def with_names(config: StoredConfigT, launch: Launch, device: torch.device) -> StoredConfigT:
    """The config in which names on the Hub have commits; what they and URLs mean is in caches.

    Raises:
        CheckpointError: there is no such model, or it can't be fetched.

    Comm: as :func:`pinned`, of names on the Hub and URLs.
    """
    names = [config.model, config.tokenizer.path]
    is_set = "path" in config.tokenizer.model_fields_set
    names = names if is_set else names[:1]
    if launch.world_size > 1 and any(is_url(n) or HubName.like(n) for n in names):
        start_process_group(launch, device, config.parallel.timeout_s)
    model, said = pinned(launch, "model", config.model, "model")
    tokenizer, more = config.tokenizer, ""
    if is_set:
        path, more = pinned(launch, "tokenizer.path", tokenizer.path, "tokenizer")
        tokenizer = tokenizer.model_copy(update={"path": path})
    for text in filter(None, (said, more) if launch.rank == 0 else ()):
        tell(text)
    return config.model_copy(update={"model": model, "tokenizer": tokenizer})


def check_language_model(model: ModelConfig, path: str) -> None:
    """Refuse a model that writes nothing.

    Raises:
        ConfigError: it is a reward model.
    """
    if model.head != "lm":
        raise ConfigError(
            f"--model {path}: is a reward model, which scores text and writes none: give a "
            "language model, such as the one that it started from"
        )


def writing_of(config: StoredModelConfig, tokenizer: Tokenizer | None = None) -> ConversationConfig:
    """How prompts are written: as options say, else as the model's run was told.

    Where neither names a template, it is that of ``tokenizer``, if that has one.
    """
    told = section_of_run(folder_of(config.model), "data")
    if "objective" in told:  # of pretraining, which writes no conversations
        told["prefix"] = bool(told.get("prefix")) and told["objective"] != "next_token"
    chosen = {key: told[key] for key in WRITING if key in told}
    chosen |= {key: getattr(config, key) for key in WRITING if key in config.model_fields_set}
    has_own = tokenizer is not None and tokenizer.chat_template and not told
    template = "tokenizer" if has_own else config.template
    return ConversationConfig(**({"template": template} | chosen))


def tokenizer_for(config: StoredModelConfig) -> Tokenizer:
    """The tokenizer that is set, the model's own, or the one that its run was told.

    Raises:
        DataError: it can't be read.
    """
    is_set = "path" in config.tokenizer.model_fields_set
    own = "" if is_set else tokenizer_of(config.model)
    told = section_of_run(folder_of(config.model), "tokenizer").get("end_token", "")
    end_token = config.tokenizer.end_token or ("" if is_set else told)
    trust_code = config.tokenizer.trust_code
    return load_tokenizer(own or config.tokenizer.path, end_token, trust_code)


def split_stops(stops: Sequence[str], tokenizer: Tokenizer) -> tuple[set[int], list[str]]:
    """What ends an answer, given as texts: ids of special tokens, and other texts.

    Raises:
        ConfigError: a special token is inside of a text.
    """
    special, ids, texts = tokenizer.special_tokens(), set[int](), []
    for stop in stops:
        if stop in special:
            ids.add(special[stop])
            continue
        inside = [token for token in special if token in stop]
        if inside:
            raise ConfigError(
                f"--stop {stop!r}: {inside[0]} is a special token, which no text has: give it alone"
            )
        texts.append(stop)
    return ids, texts
