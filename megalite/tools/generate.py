"""``megalite generate``: a model's answers to prompts, shown as they are drawn."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field

from megalite.config.section import Section
from megalite.data.chat.chat import Chat
from megalite.data.chat.examples import prompt_of
from megalite.data.chat.turns import Turn, parse_prompt
from megalite.data.config import (
    COLUMNS,
    DECODER_START,
    TEMPLATE,
    ConversationConfig,
    TemplateName,
    TokenizerConfig,
)
from megalite.data.records import Records
from megalite.data.tokenizers.load import load_tokenizer
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import ParallelConfig, build_mesh, start_process_group
from megalite.engine.build import build_model
from megalite.engine.layout import Demand, check_layout
from megalite.engine.model import Model
from megalite.errors import ConfigError, DataError
from megalite.generation.answer import Asked, answer
from megalite.generation.beam import BeamConfig, BeamSearch
from megalite.generation.decoder import CachedDecoder
from megalite.generation.generate import LOOK_EVERY, Ending, Repetition
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import SamplingConfig
from megalite.generation.text import cut_at_stop
from megalite.models.config import ModelConfig
from megalite.models.hub import HubName, folder_of, pinned
from megalite.models.hugging_face import is_hugging_face
from megalite.stages.conversation import check_vocabulary, structure_of
from megalite.stages.device import PrecisionWish, check_heads, choose_device, choose_precision
from megalite.stages.samples import decode_with
from megalite.stages.special_tokens import SpecialTokens
from megalite.stages.start import generation_config, load_start, said_by, stored_config
from megalite.stages.told import WRITING, section_of_run, tokenizer_of
from megalite.training.config import RunConfig

SUGGESTED = (  # what a generation_config.json may say that options of the command decide
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "num_beams",
    "length_penalty",
    "early_stopping",
    "no_repeat_ngram_size",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "max_length",
    "max_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)


class GenerateConfig(Section):
    """A model, prompts, and how answers are drawn."""

    model: str = Field(
        description="run or checkpoint of ours, Hugging Face folder, or a model's name on the "
        "Hugging Face Hub"
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    prompt: tuple[str, ...] = Field(
        (), description="prompts; none here or in files: lines of standard input"
    )
    prompts: tuple[str, ...] = Field((), description="files of prompts")
    columns: dict[str, str] = Field({}, description=COLUMNS)
    output: str = Field("", description="new JSONL file of prompts and answers; empty: none")
    batch_size: int = Field(
        8,
        ge=1,
        description="answers written side by side; one that ends makes room for the next prompt",
    )
    precision: PrecisionWish = Field(
        "auto",
        description="number format of compute: fp32 (CPU only), bf16, fp16, or auto: fp32 on a "
        "CPU, on a GPU bf16 where it has it, else fp16",
    )
    stop: tuple[str, ...] = Field((), description="texts that end an answer")
    template: TemplateName = Field("raw", description=TEMPLATE + "; not given: as the model's run")
    prefix: bool = Field(False, description="attention both ways between a prompt's tokens")
    decoder_start: str = Field("", description=DECODER_START)
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
    _check_options(config)
    device = choose_device(config.run, launch)
    config = _with_names(config, launch, device)
    model_config, said = stored_config(config.model)[0], said_by(config.model)
    _check_language_model(model_config, config.model)
    options = writing_of(config)
    chat = Chat(options.template, _tokenizer(config))
    check_vocabulary(chat.tokenizer, model_config)
    structure = structure_of(options, chat.tokenizer, model_config, said)
    questions = _questions(config, launch)
    prompts = [prompt_of(chat, structure, turns) for turns in questions]
    _check_lengths(prompts, model_config, config.sampling.max_new_tokens)
    ending = _ending(config, options.template, chat, said)
    check_layout(Demand(model_config, launch.world_size), config.parallel)
    check_heads(model_config, device, learns=False)
    precision = choose_precision(config.precision, device, "precision")
    mesh = build_mesh(launch, config.parallel, device)
    model = build_model(model_config, mesh, config.parallel, seed=0, precision=precision)
    load_start(model, config.model)
    if launch.rank == 0:
        _say_what_is_not_taken(config, options.template, chat.tokenizer)
        is_wide = precision == "fp32" or device.type == "cpu"
        _say_memory(config, prompts, model_config, 4 if is_wide else 2)
    is_writer = launch.rank == 0
    with Output(config.output if is_writer else "") as output, model.gathered():
        shown = Shown(questions, output, is_writer)
        if config.beam.num_beams > 1:
            for at in range(0, len(questions), config.batch_size):
                _search(config, model, (prompts[at : at + config.batch_size], at), ending, shown)
        else:
            _draw(config, model, prompts, ending, shown)
    return 0


def _with_names(config: GenerateConfig, launch: Launch, device: torch.device) -> GenerateConfig:
    """The config in which names on the Hub have their commits; what they mean is in the cache.

    Raises:
        CheckpointError: there is no such model, or it can't be fetched.

    Comm: as :func:`pinned`, of names on the Hub.
    """
    names = [config.model, config.tokenizer.path]
    is_set = "path" in config.tokenizer.model_fields_set
    names = names if is_set else names[:1]
    if launch.world_size > 1 and any(HubName.like(name) for name in names):
        start_process_group(launch, device, config.parallel.timeout_s)
    model, said = pinned(launch, "model", config.model, "model")
    tokenizer, more = config.tokenizer, ""
    if is_set:
        path, more = pinned(launch, "tokenizer.path", tokenizer.path, "tokenizer")
        tokenizer = tokenizer.model_copy(update={"path": path})
    for text in filter(None, (said, more) if launch.rank == 0 else ()):
        sys.stderr.write(f"megalite: {text}\n")
    return config.model_copy(update={"model": model, "tokenizer": tokenizer})


class Output:
    """The file of prompts and answers; each is there as soon as it is answered."""

    def __init__(self, path: str) -> None:
        """Write to ``path``; nowhere where it is empty.

        Raises:
            ConfigError: it can't be written.
        """
        self._path, self._file = path, None
        if not path:
            return
        try:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115 - closed by __exit__
        except OSError as error:
            raise ConfigError(f"--output {path}: can't be written: {error.strerror}") from None

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, questions: Sequence[Sequence[Turn]], answers: Sequence[str]) -> None:
        """Write some questions and their answers."""
        if self._file is None:
            return
        for turns, text in zip(questions, answers, strict=True):
            record = {"prompt": turns[-1].whole, "answer": text}
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()


class Shown:
    """Answers as they are printed and written: in the order of their prompts."""

    def __init__(self, questions: Sequence[Sequence[Turn]], output: Output, is_writer: bool):
        """Show answers to questions; a single one as it is drawn."""
        self._questions, self._output, self._is_writer = questions, output, is_writer
        self.streams = is_writer and len(questions) == 1
        self._texts = [""] * len(questions)
        self._ended: set[int] = set()
        self._next = 0

    def add(self, number: int, text: str) -> None:
        """Take the next text of an answer."""
        self._texts[number] += text
        if self.streams:
            sys.stdout.write(text)
            sys.stdout.flush()

    def end(self, number: int) -> None:
        """Show an answer that is whole, once those before it are shown."""
        self._ended.add(number)
        while self._next in self._ended:
            text = self._texts[self._next]
            if self._is_writer:
                sys.stdout.write("\n" if self.streams else text + "\n")
            self._output.add([self._questions[self._next]], [text])
            self._next += 1


def _check_options(config: GenerateConfig) -> None:
    """Refuse options that would have no effect.

    Raises:
        ConfigError: it names them.
    """
    sampling, beam = config.sampling, config.beam
    draws = sampling.temperature not in (0, 1) or sampling.truncates
    if beam.num_beams > 1 and (draws or sampling.counts_answer):
        raise ConfigError(
            f"--beam.num_beams {beam.num_beams}: searches for the likeliest answer and draws "
            "nothing: leave out sampling.temperature, sampling.top_k, sampling.top_p, "
            "sampling.min_p, sampling.presence_penalty and sampling.frequency_penalty"
        )
    alone = [key for key in ("length_penalty", "early_stopping") if key in beam.model_fields_set]
    if beam.num_beams == 1 and alone:
        raise ConfigError(f"--beam.{alone[0]}: is of a beam search: give --beam.num_beams above 1")
    if config.output and not Path(config.output).resolve().parent.is_dir():
        raise ConfigError(f"--output {config.output}: there is no such folder: make it")


def _check_language_model(model: ModelConfig, path: str) -> None:
    if model.head != "lm":
        raise ConfigError(
            f"--model {path}: is a reward model, which scores text and writes none: give a "
            "language model, such as the one that it started from"
        )


def _check_lengths(prompts: Sequence[Prompt], model: ModelConfig, most: int) -> None:
    """Refuse prompts that can't be answered, before the first is.

    Raises:
        DataError: it names the first.
    """
    for number, prompt in enumerate(prompts, 1):
        if not prompt.tokens:
            raise DataError(f"prompt {number}: has no tokens; an answer needs one to start from")
        rows = max(len(prompt.tokens) + most, len(prompt.encoder_tokens))
        if model.position == "learned" and rows > model.max_positions:
            raise DataError(
                f"prompt {number}: needs {rows} positions with an answer of "
                f"--sampling.max_new_tokens {most}, the model has {model.max_positions}: shorten it"
            )


def writing_of(config: GenerateConfig) -> ConversationConfig:
    """How prompts are written: as options say, else as the model's run was told."""
    told = section_of_run(folder_of(config.model), "data")
    if "objective" in told:  # of pretraining, which writes no conversations
        told["prefix"] = bool(told.get("prefix")) and told["objective"] != "next_token"
    chosen = {key: told[key] for key in WRITING if key in told}
    chosen |= {key: getattr(config, key) for key in WRITING if key in config.model_fields_set}
    return ConversationConfig(**({"template": config.template} | chosen))


def _ending(config: GenerateConfig, template: str, chat: Chat, said: SpecialTokens) -> Ending:
    """What ends an answer: what the model's config says, its template's end, and stop texts."""
    ends = {*said.ends, *chat.end_ids}
    if template == "raw" and said.ends and is_hugging_face(folder_of(config.model)):
        ends = set(said.ends)
    texts = []
    special = chat.tokenizer.special_tokens()
    for stop in config.stop:
        if stop in special:
            ends.add(special[stop])
            continue
        inside = [token for token in special if token in stop]
        if inside:
            raise ConfigError(
                f"--stop {stop!r}: {inside[0]} is a special token, which no text has: give it alone"
            )
        texts.append(stop)
    return Ending(ends, chat.tokenizer.pad_id, tuple(texts), chat.tokenizer.decode)


def _say_what_is_not_taken(config: GenerateConfig, template: str, tokenizer: Tokenizer) -> None:
    """Name what a folder suggests for generating and options of the command decide."""
    folder = folder_of(config.model)
    if template == "raw" and "template" not in config.model_fields_set and tokenizer.chat_template:
        sys.stderr.write(
            f"megalite: prompts are written raw; {tokenizer.path} has a chat template, which "
            "--template tokenizer writes by\n"
        )
    said = generation_config(folder) if is_hugging_face(folder) else {}
    found = ", ".join(f"{key} {said[key]}" for key in SUGGESTED if key in said)
    if found:
        sys.stderr.write(
            f"megalite: {folder}/generation_config.json suggests {found}; options of the command "
            "decide\n"
        )


def _say_memory(
    config: GenerateConfig, prompts: Sequence[Prompt], model: ModelConfig, number_bytes: int
) -> None:
    """Tell the memory of keys and values of many answers, before the first is begun."""
    if len(prompts) <= config.batch_size or config.beam.num_beams > 1:
        return
    room = Asked(prompts, range(len(prompts)), config.batch_size).room(config.sampling)
    size = room.size_bytes(model, number_bytes) / 2**20
    sys.stderr.write(
        f"megalite: {len(prompts)} prompts, {config.batch_size} answered side by side: their keys "
        f"and values take {size:.1f} MiB\n"
    )


def _tokenizer(config: GenerateConfig) -> Tokenizer:
    """The tokenizer that is set, the model's own, or the one that its run was told."""
    is_set = "path" in config.tokenizer.model_fields_set
    own = "" if is_set else tokenizer_of(config.model)
    told = section_of_run(folder_of(config.model), "tokenizer").get("end_token", "")
    end_token = config.tokenizer.end_token or ("" if is_set else told)
    trust_code = config.tokenizer.trust_code
    return load_tokenizer(own or config.tokenizer.path, end_token, trust_code)


def _questions(config: GenerateConfig, launch: Launch) -> list[tuple[Turn, ...]]:
    questions: list[tuple[Turn, ...]] = [(Turn("user", text),) for text in config.prompt]
    if config.prompts:
        records = Records(config.prompts, parse_prompt, config.columns)
        questions += [turns for _, turns in records]
        for note in records.notes() if launch.rank == 0 else ():
            sys.stderr.write(f"megalite: {note}\n")
    if not questions:
        if launch.world_size > 1:
            raise ConfigError("--prompt: must be given where several processes answer")
        lines = [line.rstrip("\n") for line in sys.stdin]
        questions = [(Turn("user", line),) for line in lines if line]
    if not questions:
        raise DataError("standard input: has no text; give --prompt, --prompts or lines of text")
    return questions


def _draw(
    config: GenerateConfig,
    model: Model,
    prompts: Sequence[Prompt],
    ending: Ending,
    shown: Shown,
) -> None:
    """Draw an answer to every prompt."""
    sampling = config.sampling
    asked = Asked(prompts, range(len(prompts)), config.batch_size, model.mesh.device)
    every = 1 if shown.streams else LOOK_EVERY
    ending = replace(ending, on_text=shown.add, on_end=shown.end, look_every=every)
    answer(decode_with(model), asked, sampling, ending)


def _search(
    config: GenerateConfig,
    model: Model,
    part: tuple[Sequence[Prompt], int],
    ending: Ending,
    shown: Shown,
) -> None:
    """Search for the likeliest answers to some prompts, of which the first has a number."""
    prompts, first = part
    ids = range(first, first + len(prompts))
    batch = batch_prompts(prompts, ids, ending.pad_id).to(model.mesh.device)
    limit, penalty = config.sampling.max_new_tokens, config.sampling.repetition_penalty
    repetition = Repetition(batch.decoder, penalty) if penalty != 1 else None
    decoder = CachedDecoder(decode_with(model), batch, limit)
    answers = BeamSearch(decoder, config.beam, ending, limit, repetition).run()
    decode = ending.decode
    assert decode is not None
    for number in range(len(prompts)):
        kept = [token for token in answers.answer(number) if token not in ending.end_ids]
        shown.add(first + number, cut_at_stop(decode(kept), ending.stops)[0])
        shown.end(first + number)
