"""``megalite generate``: a model's answers to prompts, shown as they are drawn."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from megalite.config.section import Section
from megalite.data.chat.templates import Chat
from megalite.data.chat.turns import Turn, parse_prompt
from megalite.data.config import TEMPLATE, ConversationConfig, TemplateName, TokenizerConfig
from megalite.data.layout import as_prompt
from megalite.data.records import read_records
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.layout import Demand, check_layout
from megalite.engine.model import Model
from megalite.errors import ConfigError, DataError
from megalite.generation.beam import BeamConfig, BeamSearch
from megalite.generation.decoder import CachedDecoder
from megalite.generation.generate import Ending, generate
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import is_hugging_face, read_config
from megalite.stages.conversation import check_vocabulary, structure_of
from megalite.stages.device import PrecisionWish, check_heads, choose_device, choose_precision
from megalite.stages.samples import decode_with
from megalite.stages.setup import check_positions
from megalite.stages.start import load_start
from megalite.training.checkpoint.load import find_checkpoint
from megalite.training.checkpoint.manifest import read_manifest
from megalite.training.config import RunConfig


class GenerateConfig(Section):
    """A model, prompts, and how answers are drawn."""

    model: str = Field(description="run or checkpoint of ours, or Hugging Face folder")
    tokenizer: TokenizerConfig = TokenizerConfig()
    prompt: tuple[str, ...] = Field(
        (), description="prompts; none here or in files: lines of standard input"
    )
    prompts: tuple[str, ...] = Field((), description="files of prompts")
    output: str = Field("", description="new JSONL file of prompts and answers; empty: none")
    batch_size: int = Field(8, ge=1, description="prompts answered together")
    precision: PrecisionWish = Field(
        "auto",
        description="number format of compute: fp32 (CPU only), bf16, fp16, or auto: fp32 on a "
        "CPU, on a GPU bf16 where it has it, else fp16",
    )
    stop: tuple[str, ...] = Field((), description="texts that end an answer")
    template: TemplateName = Field("plain", description=TEMPLATE)
    prefix: bool = Field(False, description="attention both ways between a prompt's tokens")
    decoder_start: str = Field(
        "", description="first token of an encoder-decoder's decoder; empty: the padding token"
    )
    answer_mask: str = Field(
        "", description="mask after a prompt that the answer fills, such as [gMASK] (GLM)"
    )
    answer_start: str = Field("", description="first token of an answer, such as <sop> (GLM)")
    sampling: SamplingConfig = SamplingConfig()
    beam: BeamConfig = BeamConfig()
    parallel: ParallelConfig = ParallelConfig()
    run: RunConfig = RunConfig()


def run(config: GenerateConfig, launch: Launch) -> int:
    """Answer every prompt; the first process prints."""
    model_config = stored_config(config.model)
    options = ConversationConfig(
        template=config.template,
        prefix=config.prefix,
        decoder_start=config.decoder_start,
        answer_mask=config.answer_mask,
        answer_start=config.answer_start,
    )
    chat = Chat(options.template, _tokenizer(config))
    check_vocabulary(chat.tokenizer, model_config)
    structure = structure_of(options, chat.tokenizer, model_config)
    questions = _questions(config, launch)
    check_layout(Demand(model_config, launch.world_size), config.parallel)
    device = choose_device(config.run, launch)
    check_heads(model_config, device)
    precision = choose_precision(config.precision, device, "precision")
    mesh = build_mesh(launch, config.parallel, device)
    model = build_model(model_config, mesh, config.parallel, seed=0, precision=precision)
    load_start(model, config.model)
    records = []
    for at in range(0, len(questions), config.batch_size):
        part = questions[at : at + config.batch_size]
        prompts = [as_prompt(chat.prompt(turns), structure) for turns in part]
        texts = _answer(config, model, prompts, chat, at, launch.rank == 0)
        for turns, text in zip(part, texts, strict=True):
            records.append({"prompt": turns[-1].whole, "answer": text})
    if config.output and launch.rank == 0:
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        Path(config.output).write_text("".join(lines), encoding="utf-8")
    return 0


def stored_config(path: str) -> ModelConfig:
    """The shape of a stored model.

    Raises:
        CheckpointError: there is none.
    """
    if is_hugging_face(Path(path)):
        return read_config(Path(path))[0]
    facts, _ = read_manifest(find_checkpoint(path))  # the files are checked when they are loaded
    return ModelConfig(**facts["model"])


def _tokenizer(config: GenerateConfig) -> Tokenizer:
    """The tokenizer that is set, or the model's own."""
    is_set = "path" in config.tokenizer.model_fields_set
    own = Path(config.model)
    has_own = any((own / name).exists() for name in ("tokenizer.json", "tokenizer_config.json"))
    path = own if has_own and not is_set else config.tokenizer.path
    return load_tokenizer(path, config.tokenizer.end_token)


def _questions(config: GenerateConfig, launch: Launch) -> list[tuple[Turn, ...]]:
    questions: list[tuple[Turn, ...]] = [(Turn("user", text),) for text in config.prompt]
    if config.prompts:
        questions += read_records(config.prompts, parse_prompt)
    if not questions:
        if launch.world_size > 1:
            raise ConfigError("--prompt: must be given where several processes answer")
        lines = [line.rstrip("\n") for line in sys.stdin]
        questions = [(Turn("user", line),) for line in lines if line]
    if not questions:
        raise DataError("standard input: has no text; give --prompt, --prompts or lines of text")
    return questions


def _answer(
    config: GenerateConfig,
    model: Model,
    prompts: Sequence[Prompt],
    chat: Chat,
    first: int,
    is_writer: bool,
) -> list[str]:
    """Answers as text; the answer to a single prompt is shown as it is drawn."""
    tokenizer = chat.tokenizer
    ends = [] if tokenizer.end_id is None else [tokenizer.end_id]
    batch = batch_prompts(prompts, range(first, first + len(prompts)), tokenizer.pad_id)
    longest = batch.decoder.length + config.sampling.max_new_tokens
    check_positions(model.config, longest, "sampling.max_new_tokens")
    texts = [""] * len(prompts)
    streams = is_writer and len(prompts) == 1

    def on_text(number: int, text: str) -> None:
        texts[number] += text
        if streams:
            sys.stdout.write(text)
            sys.stdout.flush()

    ending = Ending(ends, tokenizer.pad_id, config.stop, tokenizer.decode, on_text)
    with model.gathered():
        decoder = CachedDecoder(decode_with(model), batch, config.sampling.max_new_tokens)
        if config.beam.num_beams > 1:
            limit = config.sampling.max_new_tokens
            answers = BeamSearch(decoder, config.beam, ends, limit, tokenizer.pad_id).run()
            for number in range(len(prompts)):
                kept = [token for token in answers.answer(number) if token not in ends]
                on_text(number, tokenizer.decode(kept))
        else:
            generate(decoder, batch, config.sampling, ending)
    if streams:
        sys.stdout.write("\n")
    elif is_writer:
        for text in texts:
            sys.stdout.write(text + "\n")
    return texts
