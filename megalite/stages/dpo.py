"""Learning from preferences without a reward model: DPO, and IPO, KTO, ORPO and SimPO.

Each step reads rankings; the policy's log-probabilities of whole answers are compared with each
other and, but for ORPO and SimPO, with those of a reference: the model that the run starts from.
Dropout is off throughout, as both are read.
"""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.preferences import PreferredAnswers
from megalite.data.chat.row_store import RowStores
from megalite.distributed.launch import Launch
from megalite.engine.base import Base, Judging
from megalite.engine.model import Model
from megalite.stages.conversation import open_chat
from megalite.stages.datasets import Datasets, evaluations, notes_of
from megalite.stages.length import in_steps
from megalite.stages.preferences.answers import HeldOutAnswers
from megalite.stages.preferences.config import DPOConfig
from megalite.stages.preferences.objective import Comparisons
from megalite.stages.preferences.reference import StoredReference, WithReference
from megalite.stages.preferences.step import PreferenceLearner
from megalite.stages.samples import Samples, write_samples
from megalite.stages.setup import Stage, set_up, settled
from megalite.stages.start import said_by
from megalite.stages.told import notes_of_writing
from megalite.training.progress import Progress, StepResult
from megalite.training.trainer import DoStep, Evaluate

__all__ = ["DPOConfig", "run"]


def run(config: DPOConfig, launch: Launch) -> int:
    """Align a model with preferences."""
    config.check_sources()
    config = settled(config, launch)
    data, start = config.data, config.checkpoint.start
    chat_format = open_chat(config.tokenizer, data, config.model, said_by(start))

    def read(paths: Sequence[str], rules: RowRules, stores: RowStores) -> PreferredAnswers:
        chat, structure = chat_format.chat, chat_format.structure
        is_judged = config.loss.kind == "kto"
        return PreferredAnswers(paths, chat, structure, rules, is_judged, stores)

    datasets = Datasets.read_once(launch, data, config.run.seed, read)
    samples = Samples.read(config.samples, chat_format, config.model)
    config, length = in_steps(config, len(datasets.train))
    answers = HeldOutAnswers.read(config, chat_format)
    stage = set_up(config, launch)
    stage.say(length, chat_format.notes, notes_of_writing(data, start), notes_of(datasets))
    stage.say(answers.notes if answers else [])
    with stage.running():
        model = _train(config, stage, datasets, answers)
        write_samples(stage, model, samples)
    return 0


def _train(
    config: DPOConfig,
    stage: Stage,
    datasets: Datasets[PreferredAnswers],
    answers: HeldOutAnswers | None,
) -> Model:
    start, quiet = config.checkpoint.start, config.model.without_dropout()
    model = stage.model(quiet, start, lora=config.lora)
    train, heldout = _with_reference(config, stage, model, datasets)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    is_asked = config.loss.needs_reference and config.reference.kind == "model"
    reference = _reference(config, stage, model) if is_asked or answers else None
    learns = PreferenceLearner(config.loss, learner, reference if is_asked else None)
    size = config.train.micro_batch_size
    trainer.fit(
        partial(stage.loader, train, Comparisons.of),
        _measured(stage, learns),
        _together(
            evaluations(heldout, lambda part: partial(learns.evaluate, part, size)),
            answers.measured(stage, model, reference) if answers and reference else None,
        ),
    )
    return model


def _together(*measures: Evaluate | None) -> Evaluate | None:
    """What measures all that there is to measure; None where that is nothing."""
    found = [measure for measure in measures if measure is not None]

    def evaluate() -> dict[str, float]:
        return {key: value for measure in found for key, value in measure().items()}

    return evaluate if found else None


def _reference(config: DPOConfig, stage: Stage, model: Model) -> Judging:
    """What the policy starts as: with adapters itself without them, else a copy."""
    if config.lora.rank:
        return Base(model)
    copy = stage.model(config.model.without_dropout(), config.checkpoint.start)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    return copy


def _measured(stage: Stage, learns: PreferenceLearner) -> DoStep[list[Comparisons]]:
    """A step, and how fast it was."""

    def work(items: list[Comparisons], progress: Progress) -> StepResult:
        started = time.perf_counter()
        metrics = learns.step(items, progress.consumed_samples)
        batches = [item.answers.batch for item in items]
        return StepResult(metrics | stage.speed.measure(batches, time.perf_counter() - started))

    return work


def _with_reference(
    config: DPOConfig, stage: Stage, model: Model, datasets: Datasets[PreferredAnswers]
) -> tuple[WithReference, dict[str, WithReference]]:
    """The samples, with what the reference says of them where that is stored.

    Args:
        config: of the run.
        stage: of the run.
        model: as it starts, which is the reference.
        datasets: to learn and to evaluate.
    """
    train, heldout = datasets.train, datasets.heldout
    untold = {name: WithReference.without(part) for name, part in heldout.items()}
    if not (config.loss.needs_reference and config.reference.kind == "stored"):
        return WithReference.without(train), untold
    folder = Path(config.reference.folder or Path(config.run.folder) / "reference")
    stored = StoredReference(stage, model, folder)
    known = stored.of(train)
    if not config.train.evaluate_every:
        return known, untold
    return known, {name: stored.of(part) for name, part in heldout.items()}
