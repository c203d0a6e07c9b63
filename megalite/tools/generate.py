"""``megalite generate``: a model's answers to prompts, shown as they are drawn."""

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from megalite.data.chat.turns import Turn, parse_prompt
from megalite.data.config import COLUMNS
from megalite.data.records import Records
from megalite.distributed.launch import Launch
from megalite.engine.model import Model
from megalite.errors import ConfigError, DataError, naming, tell
from megalite.generation.answer import Asked, answer
from megalite.generation.beam import BeamConfig, BeamSearch
from megalite.generation.decoder import CachedDecoder
from megalite.generation.generate import LOOK_EVERY, Ending
from megalite.generation.prompts import Prompt, batch_prompts
from megalite.generation.sampling import Repetition, SamplingConfig
from megalite.generation.text import cut_at_stop
from megalite.models.config import ModelConfig
from megalite.models.hub import folder_of
from megalite.models.hugging_face import is_hugging_face
from megalite.stages.samples import bubble_of_answers, decode_with
from megalite.stages.start import generation_config
from megalite.tools.speaker import Speaker, SpeakerConfig, check_language_model, open_speaker

TITLE_CHARACTERS = 60  # of a prompt that are shown before its answer
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


class GenerateConfig(SpeakerConfig):
    """A model, prompts, and how answers are drawn."""

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
    sampling: SamplingConfig = SamplingConfig()
    beam: BeamConfig = BeamConfig()


def run(config: GenerateConfig, launch: Launch) -> int:
    """Answer every prompt; the first process prints."""
    _check_options(config)
    speaker = open_speaker(config, launch)
    check_language_model(speaker.model_config, config.model)
    questions = _questions(config, launch)
    prompts = [speaker.prompt(turns) for turns in questions]
    check_lengths(prompts, speaker.model_config, config.sampling.max_new_tokens)
    ending = speaker.ending(config.stop)
    model = speaker.load_model()
    is_writer = launch.rank == 0
    if is_writer:
        _say_what_is_not_taken(speaker)
        _say_memory(config, prompts, speaker)
    with Output(config.output if is_writer else "") as output, model.gathered():
        shown = Shown(questions, output, is_writer)
        if config.beam.num_beams > 1:
            for at in range(0, len(questions), config.batch_size):
                _search(config, model, (prompts[at : at + config.batch_size], at), ending, shown)
        else:
            _draw(config, model, prompts, ending, shown)
    return 0


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
            with naming(self._path):
                self._file.close()

    def add(self, questions: Sequence[Sequence[Turn]], answers: Sequence[str]) -> None:
        """Write some questions and their answers."""
        if self._file is None:
            return
        with naming(self._path):
            for turns, text in zip(questions, answers, strict=True):
                record = {"prompt": turns[-1].whole, "answer": text}
                self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()


class Shown:
    """Answers as they are printed and written: in the order of their prompts.

    A line with its number and prompt stands before each of several answers.
    """

    def __init__(self, questions: Sequence[Sequence[Turn]], output: Output, is_writer: bool):
        """Show answers to questions; a single one as it is drawn."""
        self._questions, self._output, self.is_writer = questions, output, is_writer
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
            if self.is_writer:
                sys.stdout.write("\n" if self.streams else self._titled(text))
                sys.stdout.flush()
            self._output.add([self._questions[self._next]], [text])
            self._next += 1

    def _titled(self, text: str) -> str:
        """An answer behind its number and the beginning of its prompt."""
        number, count = self._next + 1, len(self._questions)
        lines = self._questions[self._next][-1].whole.split("\n")
        begin = lines[0][:TITLE_CHARACTERS]
        more = "" if [begin] == lines else " ..."
        gap = "\n" if self._next else ""
        return f"{gap}--- {number} of {count}: {begin}{more}\n{text}\n"


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


def check_lengths(prompts: Sequence[Prompt], model: ModelConfig, most: int) -> None:
    """Refuse prompts that can't be answered, before the first is.

    Raises:
        DataError: it names the first.
    """
    for number, prompt in enumerate(prompts, 1):
        if not prompt.tokens:
            raise DataError(f"prompt {number}: has no tokens; an answer needs one to start from")
        rows = max(len(prompt.tokens) + most, len(prompt.encoder_tokens))
        if model.has_position_table and rows > model.max_positions:
            raise DataError(
                f"prompt {number}: needs {rows} positions with an answer of "
                f"--sampling.max_new_tokens {most}, the model has {model.max_positions}: shorten it"
            )


def _say_what_is_not_taken(speaker: Speaker) -> None:
    """Name what a folder suggests for generating and options of the command decide."""
    config, tokenizer = speaker.config, speaker.chat.tokenizer
    is_raw = speaker.template == "raw" and "template" not in config.model_fields_set
    if is_raw and tokenizer.chat_template:
        tell(
            f"prompts are written raw; {tokenizer.path} has a chat template, which "
            "--template tokenizer writes by"
        )
    folder = folder_of(config.model)
    said = generation_config(folder) if is_hugging_face(folder) else {}
    found = ", ".join(f"{key} {said[key]}" for key in SUGGESTED if key in said)
    if found:
        tell(f"{folder}/generation_config.json suggests {found}; options of the command decide")


def _say_memory(config: GenerateConfig, prompts: Sequence[Prompt], speaker: Speaker) -> None:
    """Tell the memory that many answers take, before the first is begun."""
    if len(prompts) <= config.batch_size or config.beam.num_beams > 1:
        return
    room = Asked(prompts, range(len(prompts)), config.batch_size).room(config.sampling)
    model, number = speaker.model_config, speaker.number_bytes
    on_gpu = speaker.device.type == "cuda"
    tell(
        f"{len(prompts)} prompts, {config.batch_size} answered side by side: their keys "
        f"and values take {room.size_bytes(model, number) / 2**20:.1f} MiB, passes and draws up to "
        f"{room.working_bytes(model, number, config.sampling, on_gpu) / 2**20:.1f} MiB"
    )


def _questions(config: GenerateConfig, launch: Launch) -> list[tuple[Turn, ...]]:
    questions: list[tuple[Turn, ...]] = [(Turn("user", text),) for text in config.prompt]
    if config.prompts:
        records = Records(config.prompts, parse_prompt, config.columns)
        questions += [turns for _, turns in records]
        for note in records.notes() if launch.rank == 0 else ():
            tell(note)
    if not questions:
        if launch.world_size > 1:
            raise ConfigError("--prompt: must be given where several processes answer")
        if sys.stdin.isatty():
            tell("waits for prompts, a line each; Ctrl-D ends them")
        questions = [(Turn("user", line),) for line in _typed() if line]
    if not questions:
        raise DataError("standard input: has no text; give --prompt, --prompts or lines of text")
    return questions


def _typed() -> list[str]:
    """The lines of the standard input.

    Raises:
        DataError: it isn't UTF-8.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return [line.rstrip("\r\n") for line in sys.stdin]
    except UnicodeDecodeError as error:
        raise DataError(f"standard input: not UTF-8 text at byte {error.start}") from None


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
    every = 1 if len(prompts) == 1 else LOOK_EVERY  # the same on all processes: they leave together
    ending = replace(ending, on_text=shown.add, on_end=shown.end, look_every=every)
    answer(decode_with(model), asked, sampling, ending)
    bubble = bubble_of_answers(model)
    if bubble is not None and shown.is_writer:
        tell(f"a stage of the pipeline computed nothing for {bubble:.0%} of the time")


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
