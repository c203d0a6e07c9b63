"""``megalite eval``: what a stored model is worth on held-out text, conversations, rankings, tasks.

The numbers are the same in every layout: sums over all targets in fp64.
"""

import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megalite.config.load import validated
from megalite.data.chat.datasets import Conversations, Ranked, RankedAnswers
from megalite.data.chat.long_rows import RowRules
from megalite.data.config import COLUMNS, CorpusConfig
from megalite.data.example import collate
from megalite.data.loader import Dataset
from megalite.data.named_files import notes_of_others, row_files, store_names
from megalite.distributed.launch import Launch
from megalite.engine.model import Model
from megalite.errors import ConfigError, tell
from megalite.files.fetch import fetch_together
from megalite.files.urls import is_url
from megalite.models.hub import folder_of
from megalite.stages.corpus import check_corpus_positions, store_opener, text_batch
from megalite.stages.rm import count_pairs, heldout_metrics
from megalite.stages.told import section_of_run
from megalite.tools.judging import MakeBatch, Numbers, measure_text
from megalite.tools.speaker import Speaker, StoredModelConfig, open_speaker

UNUSED = (  # keys of data that a run has
    *("train", "weights", "weights_at", "size_limit", "objectives"),
    *("heldout", "validation", "split"),
)

OF_TASKS = ("task_folder", "num_fewshot", "chat_template", "limit")


class EvalConfig(StoredModelConfig):
    """A stored model, and what it is measured on."""

    stores: tuple[str, ...] = Field(
        (), description="token stores, without .bin and .idx, folders of them, or patterns"
    )
    rows: tuple[str, ...] = Field(
        (),
        description="JSONL, JSON or Parquet files, folders of them, or patterns: of conversations, "
        "or of rankings for a reward model",
    )
    columns: dict[str, str] = Field({}, description=COLUMNS)
    long_rows: Literal["refuse", "drop"] = Field(
        "refuse",
        description="what becomes of a record that is longer than the model's positions; refuse: "
        "an error that counts them; drop: left out",
    )
    data: CorpusConfig = Field(
        CorpusConfig(),
        description="how stores are read; what is not given: as the model's run was told",
    )
    tasks: tuple[str, ...] = Field(
        (), description="tasks and groups of lm-evaluation-harness, by their names"
    )
    task_folder: str = Field(
        "", description="folder of tasks of your own, YAML files beside their data; empty: none"
    )
    num_fewshot: int = Field(
        -1, ge=-1, description="examples before each question of a task; -1: as the task says"
    )
    chat_template: bool = Field(
        False, description="questions of tasks are written by the tokenizer's own chat template"
    )
    limit: int = Field(0, ge=0, description="documents of each task; 0: all")
    batch_size: int = Field(8, ge=1, description="sequences of a forward pass")
    output: str = Field("", description="new JSON file of the numbers; empty: none")


def run(config: EvalConfig, launch: Launch) -> int:
    """Measure; the first process prints and writes."""
    found = measure_stored(config, launch)
    if launch.rank == 0:
        _show(found, config.output)
    return 0


def measure_stored(config: EvalConfig, launch: Launch) -> dict[str, Numbers]:
    """Measure a stored model; see :func:`measure`."""
    _check(config)
    speaker = open_speaker(config, launch)
    return measure(config, speaker, speaker.load_model)


def measure(config: EvalConfig, speaker: Speaker, load: Callable[[], Model]) -> dict[str, Numbers]:
    """The numbers of each thing that a config names.

    Args:
        config: what is measured on.
        speaker: how the model's texts are written.
        load: gives the model, once all data is found.

    Raises:
        UserError: there is nothing to measure on, it can't be read, or doesn't fit the model.

    Comm: all processes of the speaker's launch call it.
    """
    _check(config)
    _check_kind(config, speaker.model_config.head != "lm")
    datasets = read_datasets(config, speaker)
    measure_tasks = _task_measure(config)
    model = load()
    found: dict[str, Numbers] = {}
    with model.gathered():
        for name, (dataset, make) in datasets.items():
            found[name] = (
                measure_ranking(model, dataset, config.batch_size)
                if make is None
                else measure_text(model, dataset, make, config.batch_size)
            )
        if measure_tasks is not None:
            found |= measure_tasks(speaker, model)
    return found


def _task_measure(
    config: EvalConfig,
) -> Callable[[Speaker, Model], dict[str, Numbers]] | None:
    """What measures tasks, once they are found; None where there are none.

    Raises:
        ConfigError: there is no such task, or no harness.
    """
    if not config.tasks:
        return None
    from megalite.tools import harness  # lm_eval is an extra, and slow to import

    tasks = harness.Tasks(
        config.tasks,
        harness.task_manager(config.tasks, config.task_folder),
        None if config.num_fewshot < 0 else config.num_fewshot,
        config.limit or None,
        config.chat_template,
        config.batch_size,
    )
    return lambda speaker, model: harness.measure_tasks(speaker, model, tasks)


def _check(config: EvalConfig) -> None:
    """Refuse what measures nothing.

    Raises:
        ConfigError: it says what to give.
    """
    if not (config.stores or config.rows or config.tasks):
        raise ConfigError("--stores, --rows or --tasks: at least one must be given")
    for key in UNUSED:
        if key in config.data.model_fields_set:
            raise ConfigError(f"--data.{key}: is of a training run: give --stores or --rows")
    for key in OF_TASKS:
        if key in config.model_fields_set and not config.tasks:
            raise ConfigError(f"--{key}: is of tasks: give --tasks, or leave it out")
    if config.task_folder and not Path(config.task_folder).is_dir():
        raise ConfigError(f"--task_folder {config.task_folder}: there is no such folder")
    if config.output and not Path(config.output).resolve().parent.is_dir():
        raise ConfigError(f"--output {config.output}: there is no such folder: make it")
    if config.output and Path(config.output).is_dir():
        raise ConfigError(f"--output {config.output}: is a folder: give a new file in it")


def _check_kind(config: EvalConfig, is_reward_model: bool) -> None:
    if not is_reward_model:
        return
    for key in ("stores", "tasks"):
        if getattr(config, key):
            raise ConfigError(
                f"--{key}: {config.model} is a reward model, which ranks answers: give --rows of "
                "rankings"
            )


def read_datasets(
    config: EvalConfig, speaker: Speaker
) -> dict[str, tuple[Dataset[Any], MakeBatch | None]]:
    """What is measured by its name, and what makes a batch of it; None: it is rankings.

    Raises:
        UserError: it isn't there, or doesn't fit the model.
    """
    found: dict[str, tuple[Dataset[Any], MakeBatch | None]] = {}
    keys = {"stores": config.stores, "rows": config.rows}
    urls = [(key, name) for key, names in keys.items() for name in names if is_url(name)]
    said = fetch_together(speaker.launch, urls)
    for text in said if speaker.launch.rank == 0 else ():
        tell(text)
    if config.stores:
        found |= _stores(config, speaker)
    rules = RowRules(speaker.model_config.max_positions, config.long_rows, config.columns)
    for name in config.rows:
        files, left_out = row_files([name])
        dataset = _rows(speaker, files, rules)
        make = None if isinstance(dataset, RankedAnswers) else _collate_by(speaker)
        found[name] = dataset, make
        notes = (*dataset.notes, *notes_of_others(left_out))
        for note in notes if speaker.launch.rank == 0 else ():
            tell(note)
    return found


def _stores(
    config: EvalConfig, speaker: Speaker
) -> dict[str, tuple[Dataset[Any], MakeBatch | None]]:
    data, model = data_of(config, speaker.model_config.max_positions), speaker.model_config
    check_corpus_positions(model, data, "data")
    tokenizer = config.tokenizer.model_copy(update={"path": speaker.chat.tokenizer.path})
    opened = store_opener(data, tokenizer, model, config.run.seed, speaker.said)
    make = partial(text_batch, data=data, model=model)
    names = store_names(config.stores)
    return {name: (opened(name, number), make) for number, name in enumerate(names)}


def _rows(speaker: Speaker, files: Sequence[str], rules: RowRules) -> Conversations | RankedAnswers:
    if speaker.model_config.head != "lm":
        return RankedAnswers(files, speaker.chat, speaker.structure, rules)
    return Conversations(files, speaker.chat, speaker.structure, rules, packed=False)


def _collate_by(speaker: Speaker) -> MakeBatch:
    return partial(collate, pad_id=speaker.chat.tokenizer.pad_id)


def data_of(config: EvalConfig, positions: int) -> CorpusConfig:
    """How stores are read: as options say, else as the model's run was told.

    Where neither says how long a sequence is, it has no more tokens than ``positions``.

    Raises:
        ConfigError: the run's section can't be read.
    """
    told = section_of_run(folder_of(config.model), "data")
    told = told if "objective" in told else {}
    chosen = {key: value for key, value in told.items() if key not in UNUSED}
    chosen |= config.data.model_dump(mode="json", exclude_unset=True)
    chosen.setdefault("sequence_length", min(config.data.sequence_length, positions))
    return validated(CorpusConfig, chosen, f"{config.model}: its run's [data]")


def measure_ranking(model: Model, dataset: Dataset[Ranked], size: int) -> Numbers:
    """Share of all pairs of answers that a reward model ranks right, and how far to believe it.

    Comm: as :func:`count_pairs`.
    """
    found = heldout_metrics(count_pairs(model, dataset, size))
    return {name.removeprefix("heldout_"): value for name, value in found.items()}


def _show(found: dict[str, Numbers], output: str) -> None:
    """Print a line for each thing that was measured, and write the file."""
    for name, numbers in found.items():
        text = "  ".join(f"{key} {_shown(value)}" for key, value in numbers.items())
        sys.stdout.write(f"{name}: {text}\n")
    if output:
        try:
            Path(output).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--output {output}: can't be written: {error.strerror}") from None


def _shown(value: float) -> str:
    return f"{int(value):,}" if value == int(value) and abs(value) > 1 else f"{value:.6g}"
