"""Reward modelling: a scalar head learns to rank answers, K of them in one forward pass."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field

from megalite.data.chat.datasets import Ranked, RankedAnswers, ranking_batch
from megalite.data.chat.long_rows import RowRules
from megalite.data.chat.row_store import RowStores
from megalite.data.config import StoredConversationConfig
from megalite.data.loader import Dataset, passes_over
from megalite.distributed.launch import Launch
from megalite.distributed.sums import sum_metrics
from megalite.engine.model import Model, Task
from megalite.errors import ConfigError
from megalite.models.batch import Batch
from megalite.models.outputs import Values
from megalite.stages.conversation import open_chat
from megalite.stages.datasets import Datasets, evaluations, notes_of
from megalite.stages.length import in_steps
from megalite.stages.positions import check_positions
from megalite.stages.ranked import Pairs, details_of, metrics_of
from megalite.stages.rlhf.losses import ranking_pairs
from megalite.stages.rlhf.updates import RankingLoss, Rankings
from megalite.stages.setup import Stage, StageConfig, set_up, settled
from megalite.stages.start import said_by
from megalite.stages.told import notes_of_writing
from megalite.training.config import RunConfig
from megalite.training.folder.files import RANKINGS
from megalite.training.learner import Learner
from megalite.training.progress import Progress, Seconds, StepResult
from megalite.training.trainer import DoStep, Evaluate

RankingItem = tuple[Batch, Rankings]
COUNTS = ("correct_pairs", "pairs", "equal_pairs")  # of a batch, summed over the global one


class RMConfig(StageConfig):
    """A reward-modelling run."""

    stage: ClassVar[str] = "rm"
    lacking: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("z_loss", "max_z_loss", "label_smoothing"),
        "is of a softmax over the vocabulary, and a reward model has a score alone: leave it out",
    )
    run: RunConfig = RunConfig(folder="runs/rm")
    data: StoredConversationConfig = StoredConversationConfig()
    margin: float = Field(
        0.0,
        ge=0,
        description="factor of the records' margin, by which a better answer must score more than "
        "a worse one (Llama 2: 1); 0: margins are not read",
    )

    def check_inputs(self) -> None:
        """See :class:`StageConfig`."""
        length = self.data.sequence_length
        check_positions(self.model, length, f"data.sequence_length {length}")


def run(config: RMConfig, launch: Launch) -> int:
    """Train a reward model; its head is a scalar whatever the config's model says."""
    config = settled(config, launch, "value")
    data, start = config.data, config.checkpoint.start
    if not data.train:
        raise ConfigError("--data.train: needs at least one file of rankings")
    chat_format = open_chat(config.tokenizer, data, config.model, said_by(start))

    def read(paths: Sequence[str], rules: RowRules, stores: RowStores) -> RankedAnswers:
        chat, structure = chat_format.chat, chat_format.structure
        return RankedAnswers(paths, chat, structure, rules, config.margin, stores)

    datasets = Datasets.read_once(launch, data, config.run.seed, read)
    if config.margin and not datasets.train.has_margins:
        raise ConfigError(
            f"--margin {config.margin:g}: no record of data.train has a 'margin': add them, or "
            "give 0"
        )
    config, length = in_steps(config, len(datasets.train))
    stage = set_up(config, launch)
    stage.say(length, chat_format.notes, notes_of_writing(data, start), notes_of(datasets))
    with stage.running():
        _train(config, stage, datasets)
    return 0


def _train(config: RMConfig, stage: Stage, datasets: Datasets[RankedAnswers]) -> None:
    value_model = config.model.model_copy(update={"head": "value"})
    model = stage.model(value_model, config.checkpoint.start, lora=config.lora)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    named = {name: (name, part) for name, part in datasets.heldout.items()}
    trainer.fit(
        partial(stage.loader, datasets.train, _make),
        _ranking_step(stage, learner),
        evaluations(named, partial(_evaluation, stage, model, {})),
    )


def _evaluation(
    stage: Stage,
    model: Model,
    written: dict[str, Any],
    named: tuple[str, RankedAnswers],
) -> Evaluate:
    """What measures the model on a held-out set and writes what a report shows of all of them."""
    name, part = named

    def evaluate() -> dict[str, float]:
        sums = count_pairs(model, part, stage.config.train.micro_batch_size)
        written[name or "heldout"] = details_of(sums)
        stage.log.write(RANKINGS, json.dumps(written, indent=1) + "\n")
        return heldout_metrics(sums)

    return evaluate


def _make(rankings: Sequence[Ranked], sample_ids: Sequence[int]) -> RankingItem:
    made = ranking_batch([ranking.answers for ranking in rankings], sample_ids)
    levels = None
    if any(any(ranking.levels) for ranking in rankings):
        levels = torch.zeros(made.valid.shape)
        for row, ranking in zip(levels, rankings, strict=True):
            row[: len(ranking.levels)] = torch.tensor(ranking.levels)
    return made.batch, Rankings(made.sequences, made.ends, made.valid, made.same, levels)


def _ranking_step(stage: Stage, learner: Learner) -> DoStep[list[RankingItem]]:
    """A step of the ranking loss over a step's micro-batches."""

    def work(items: list[RankingItem], progress: Progress) -> StepResult:
        learned = sum(rankings.num_learned for _, rankings in items)
        counts = stage.counts(learned, [batch for batch, _ in items])
        update = learner.begin(
            [(batch, rankings.to(stage.mesh.device)) for batch, rankings in items],
            lambda scale: Task(Values(), RankingLoss(scale)),
            counts,
            progress.consumed_samples,
        )

        def known(seconds: Seconds) -> dict[str, float]:
            metrics = update.metrics()
            metrics |= _accuracy({name: metrics.pop(name) for name in COUNTS})
            return metrics | stage.speed.rates(counts.numbers(), seconds())

        return StepResult(known)

    return work


def count_pairs(model: Model, dataset: Dataset[Ranked], size: int) -> dict[str, float]:
    """Counts of all held-out pairs: see :meth:`Rankings.counts` and :meth:`Pairs.sums`.

    Each ranking counts once over all ranks; each rank runs the same number of forward passes of
    ``size`` rankings, the last of them perhaps on a ranking that doesn't count.

    Comm: forward passes, and an all-reduce over dp.
    """
    mesh = model.mesh
    nothing = torch.zeros(0)
    sums = dict.fromkeys(COUNTS, torch.zeros(())) | Pairs(nothing, nothing).sums()
    for places in passes_over(len(dataset), size, mesh.dp.rank, mesh.dp.size):
        part = places or [0]
        batch, rankings = _make([dataset[number] for number in part], part)
        (values,) = model.evaluate([batch.to(mesh.device)], Values())
        if places:
            counts = rankings.counts(values.cpu()) | _pairs(rankings, values.cpu()).sums()
            sums = {name: sums[name] + counts[name] for name in sums}
    return sum_metrics({name: x.to(mesh.device) for name, x in sums.items()}, mesh.dp)


def _pairs(rankings: Rankings, values: torch.Tensor) -> Pairs:
    """The pairs of answers that differ, as values [B, S] score them."""
    told = rankings.valid, rankings.same
    scores, kept = ranking_pairs(values[rankings.sequences, rankings.ends], *told)
    tokens, _ = ranking_pairs(rankings.ends, *told)  # answers to one prompt: they begin alike
    levels = rankings.levels
    margins = None if levels is None else ranking_pairs(levels, *told)[0][kept]
    return Pairs(scores[kept], tokens[kept], margins)


def heldout_metrics(sums: dict[str, float]) -> dict[str, float]:
    """``heldout_accuracy``, the share of pairs that are ranked right, and what goes with it.

    See :func:`metrics_of`.
    """
    found = _accuracy(sums) | metrics_of(sums)
    return {f"heldout_{name}": value for name, value in found.items()}


def _accuracy(counts: dict[str, float]) -> dict[str, float]:
    """The accuracy of counted pairs, where there are any, and the number of equal ones."""
    found = {"accuracy": counts["correct_pairs"] / counts["pairs"]} if counts["pairs"] else {}
    equal = counts["equal_pairs"]
    return found | ({"equal_pairs": equal} if equal else {})
