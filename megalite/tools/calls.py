"""Megalite from Python: what commands do, as functions; ``import megalite`` names them.

A call leaves the process as it was: signal handlers, process groups, the number of threads, the
default dtype and the working folder.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
import torch.distributed as dist

from megalite.config.load import read_toml, validated
from megalite.config.section import Section
from megalite.data.chat.turns import Turn
from megalite.data.corpus import prepare
from megalite.data.records import check_unicode
from megalite.data.tokenizers.load import load_tokenizer as tokenizer_at
from megalite.data.tokenizers.tokenizer import Tokenizer
from megalite.data.tokenizers.train import TokenizerTrainConfig
from megalite.data.tokenizers.train import run as make_tokenizer
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import leave_process_group
from megalite.engine.model import Model
from megalite.errors import ConfigError, DataError
from megalite.generation.answer import Asked, answer
from megalite.generation.sampling import SamplingConfig
from megalite.models.config import ModelConfig
from megalite.models.hub import folder_of, pinned
from megalite.stages import dpo, grpo, ppo, pretrain, rm, sft
from megalite.stages.samples import decode_with
from megalite.stages.told import section_of_run, tokenizer_of
from megalite.tools import convert as conversion
from megalite.tools import eval as evaluation
from megalite.tools.generate import check_lengths
from megalite.tools.speaker import (
    Speaker,
    StoredModelConfig,
    check_language_model,
    open_speaker,
)

StageName = Literal["pretrain", "sft", "rm", "ppo", "grpo", "dpo"]
STAGES: dict[str, tuple[ModuleType, type[Section]]] = {
    "pretrain": (pretrain, pretrain.PretrainConfig),
    "sft": (sft, sft.SFTConfig),
    "rm": (rm, rm.RMConfig),
    "ppo": (ppo, ppo.PPOConfig),
    "grpo": (grpo, grpo.GRPOConfig),
    "dpo": (dpo, dpo.DPOConfig),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SLOTS = 8  # answers that are written side by side
Message = Mapping[str, str]  # has role and content
Question = str | Sequence[Message]


@contextmanager
def unbound() -> Iterator[None]:
    """Put back, behind a block, what a command sets for the whole process."""
    threads, dtype, folder = torch.get_num_threads(), torch.get_default_dtype(), os.getcwd()
    had_group, hook = dist.is_initialized(), sys.excepthook  # which a group puts its rank before
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS} if is_main else {}
    try:
        yield
    finally:
        if not had_group:
            leave_process_group()
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        os.chdir(folder)
        sys.excepthook = hook
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights, its tokenizer and its way to write conversations.

    Attributes:
        speaker: how texts become tokens, and the other way round.
        model: runs batches: ``model.evaluate([batch], output)``; its ``parts`` are modules.
    """

    speaker: Speaker
    model: Model

    @property
    def config(self) -> ModelConfig:
        """Its shape."""
        return self.speaker.model_config

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.speaker.chat.tokenizer


def load_model(
    model: str | Path,
    *,
    tokenizer: str | Path = "",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    **options: Any,
) -> LoadedModel:
    """Load a model of a run, a checkpoint, a Hugging Face folder or a name on its Hub.

    Args:
        model: where it is.
        tokenizer: path or name; empty: the model's own.
        device: that computes.
        options: further keys of ``megalite config chat``, such as ``template`` or ``precision``.

    Raises:
        CheckpointError: there is no such model.
        ConfigError: an option is unknown, or can't be had.
        DataError: there is no such tokenizer.
    """
    values = _stored(model, tokenizer, options)
    values["run"] = {**values.get("run", {}), "device": device}
    config = validated(StoredModelConfig, values, "load_model")
    with unbound():
        speaker = open_speaker(config, Launch(), converses=True)
        return LoadedModel(speaker, speaker.load_alone())


def load_tokenizer(tokenizer: str | Path, end_token: str = "") -> Tokenizer:
    """Load a tokenizer, or that of a run or model.

    Args:
        tokenizer: folder, file, or name on the Hub; or a run or checkpoint.
        end_token: ends a document or an answer; empty: as the files or the run say.

    Raises:
        DataError: there is none.
    """
    name = pinned(Launch(), "tokenizer", str(tokenizer), "tokenizer")[0]
    told = section_of_run(folder_of(name), "tokenizer").get("end_token", "")
    return tokenizer_at(tokenizer_of(name) or name, end_token or told)


def train(
    stage: StageName,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    launch: Launch | None = None,
    **sections: Any,
) -> Path:
    """Train a stage as its command does; what is there of the run is gone on with.

    Args:
        stage: which.
        config: TOML file, or the same as a mapping of sections.
        launch: this process among several, as ``Launch.from_environment`` finds it under torchrun;
            None: it is alone.
        sections: what overrides the config, such as ``train={"steps": 100}``.

    Returns:
        The run's folder.

    Raises:
        ConfigError: a key is unknown, or a value can't be had.
        Stopped: a signal asked to stop; the state is saved.

    Comm: all processes of ``launch`` call it.
    """
    if stage not in STAGES:
        raise ConfigError(f"train: stage {stage!r}: must be one of {', '.join(STAGES)}")
    module, kind = STAGES[stage]
    values: Mapping[str, Any] = {}
    if isinstance(config, Mapping):
        values = config
    elif config is not None:
        values = read_toml(Path(config))
    source = "train" if config is None or isinstance(config, Mapping) else str(config)
    made: Any = validated(kind, _joined(_plain(values), _plain(sections)), source)
    with unbound():
        module.run(made, launch or Launch())
    return Path(made.run.folder)


def generate(
    model: LoadedModel | str | Path,
    prompts: Question | Sequence[Question],
    *,
    stop: Sequence[str] = (),
    slots: int = SLOTS,
    on_text: Callable[[int, str], None] | None = None,
    **sampling: Any,
) -> Any:
    """Answer prompts.

    Args:
        model: loaded, or where it is.
        prompts: a text, or a conversation as messages with ``role`` and ``content``; or several.
        stop: texts that end an answer.
        slots: answers that are written side by side; none depends on it.
        on_text: is given the number of an answer and its next text.
        sampling: ``max_new_tokens``, ``temperature``, ``top_p``, ``seed`` and the other keys of
            ``sampling`` in ``megalite config generate``.

    Returns:
        The answer, or a list of them where several prompts came.

    Raises:
        ConfigError: an option is unknown, or the model writes nothing.
        DataError: a prompt can't be written.
    """
    config = validated(SamplingConfig, _plain(sampling), "generate")
    loaded = model if isinstance(model, LoadedModel) else load_model(model)
    speaker = loaded.speaker
    check_language_model(speaker.model_config, speaker.config.model)
    questions, is_one = _questions(prompts)
    written = [speaker.prompt(turns) for turns in questions]
    check_lengths(written, speaker.model_config, config.max_new_tokens)
    if not written:
        return []
    texts = [""] * len(written)

    def take(number: int, text: str) -> None:
        texts[number] += text
        if on_text is not None:
            on_text(number, text)

    ending = replace(speaker.ending(stop), on_text=take)
    asked = Asked(written, range(len(written)), slots, speaker.device)
    with unbound():
        answer(decode_with(loaded.model), asked, config, ending)
    return texts[0] if is_one else texts


def _questions(prompts: Any) -> tuple[list[list[Turn]], bool]:
    """Each question as turns, and whether one alone came."""
    is_several = isinstance(prompts, Sequence) and not isinstance(prompts, str | bytes)
    is_one = not is_several or (
        len(prompts) > 0 and all(isinstance(item, Mapping) for item in prompts)
    )
    return [_turns(one) for one in ([prompts] if is_one else prompts)], is_one


def _turns(question: Any) -> list[Turn]:
    if isinstance(question, str):
        return [Turn("user", _text(question))]
    if not isinstance(question, Sequence) or isinstance(question, bytes):
        raise ConfigError(
            f"generate: a prompt must be a text or a list of messages, came {question!r}"
        )
    for message in question:
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            came = ", ".join(message) if isinstance(message, Mapping) else repr(message)
            raise ConfigError(f"generate: a message must have role and content, came {came}")
    return [Turn(_text(message["role"]), _text(message["content"])) for message in question]


def _text(value: Any) -> str:
    """What was given as a text, if it is one that can be written."""
    if not isinstance(value, str):
        raise ConfigError(f"generate: role and content must be texts, came {value!r}")
    try:
        check_unicode(value)
    except ValueError as error:
        raise DataError(f"generate: {error}") from None
    return value


def evaluate(
    model: LoadedModel | str | Path,
    *,
    tokenizer: str | Path = "",
    launch: Launch | None = None,
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Measure a model as ``megalite eval`` does.

    Args:
        model: loaded, or where it is.
        tokenizer: path or name; empty: the model's own.
        launch: as of :func:`train`, for a model that isn't loaded.
        options: ``stores``, ``rows``, ``tasks`` and the other keys of ``megalite config eval``.

    Returns:
        The numbers of each thing that was measured.

    Raises:
        ConfigError: an option is unknown.
        DataError: what is to be measured on can't be read.
    """
    loaded = model if isinstance(model, LoadedModel) else None
    name = loaded.speaker.config.model if loaded is not None else model
    values = _stored(str(name), tokenizer, options)
    config = validated(evaluation.EvalConfig, values, "evaluate")
    with unbound():
        if loaded is not None:
            return evaluation.measure(config, loaded.speaker, lambda: loaded.model)
        return evaluation.measure_stored(config, launch or Launch())


def convert(source: str | Path, target: str | Path, **options: Any) -> Path:
    """Turn a Hugging Face folder into a checkpoint of ours, or a run into a folder.

    Args:
        source: what is converted.
        target: new folder.
        options: further keys of ``megalite config convert``, such as ``dtype``.

    Returns:
        ``target``.

    Raises:
        UserError: it can't be converted; nothing is left of it.
    """
    values = {"source": str(source), "target": str(target), **_plain(options)}
    config = validated(conversion.ConvertConfig, values, "convert")
    with unbound():
        conversion.run(config, Launch())
    return Path(target)


def prepare_data(
    source: str | Path | Sequence[str | Path],
    output: str | Path,
    tokenizer: str | Path,
    **options: Any,
) -> Path:
    """Turn text into a token store.

    Args:
        source: folders or files of text, JSON or Parquet; or one of them.
        output: the store, without .bin and .idx.
        tokenizer: path or name.
        options: further keys of ``megalite config data prepare``, such as ``processes``.

    Returns:
        ``output``.

    Raises:
        UserError: it can't be read or written.
    """
    values = {"source": _sources(source), "output": str(output), "tokenizer": str(tokenizer)}
    config = validated(prepare.PrepareConfig, {**values, **_plain(options)}, "prepare_data")
    with unbound():
        prepare.run(config, Launch())
    return Path(output)


def train_tokenizer(
    source: str | Path | Sequence[str | Path], output: str | Path, vocab_size: int, **options: Any
) -> Path:
    """Train a byte-level BPE tokenizer.

    Args:
        source: folders or files of text, JSON or Parquet; or one of them.
        output: new folder.
        vocab_size: number of tokens, special ones included.
        options: further keys of ``megalite config tokenizer train``, such as ``special_tokens``.

    Returns:
        ``output``.

    Raises:
        UserError: the source can't be read, or the folder not be written.
    """
    values = {"source": _sources(source), "output": str(output), "vocab_size": vocab_size}
    config = validated(TokenizerTrainConfig, {**values, **_plain(options)}, "train_tokenizer")
    with unbound():
        make_tokenizer(config, Launch())
    return Path(output)


def _sources(source: str | Path | Sequence[str | Path]) -> list[str]:
    return [str(one) for one in ([source] if isinstance(source, str | Path) else source)]


def _stored(model: str | Path, tokenizer: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a config that names a stored model."""
    values = {"model": str(model), **_plain(options)}
    return {**values, "tokenizer": {"path": str(tokenizer)}} if tokenizer else values


def _plain(value: Any) -> Any:
    """Values as TOML has them: paths as texts, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, os.PathLike) else value


def _joined(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables in which the values of ``over`` stand before others."""
    made = dict(values)
    for key, value in over.items():
        before = made.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            value = _joined(before, value)
        made[key] = value
    return made
