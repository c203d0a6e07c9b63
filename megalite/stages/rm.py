"""Reward modelling: a scalar head learns to rank answers, K of them in one forward pass."""

import time
from collections.abc import Sequence

import torch

from megalite.data.chat.datasets import RankedAnswers, ranking_batch
from megalite.data.config import ConversationConfig, TokenizerConfig
from megalite.data.loader import Loader
from megalite.distributed.launch import Launch
from megalite.distributed.sums import sum_metrics
from megalite.engine.model import Model, Task
from megalite.errors import ConfigError
from megalite.models.batch import Batch
from megalite.models.outputs import Values
from megalite.stages.conversation import open_chat, share_of
from megalite.stages.rlhf.losses import ranking_pairs
from megalite.stages.rlhf.updates import RankingLoss, Rankings
from megalite.stages.setup import Stage, StageConfig, set_up
from megalite.training.trainer import Learner, Trainer


class RMConfig(StageConfig):
    """A reward-modelling run."""

    tokenizer: TokenizerConfig = TokenizerConfig()
    data: ConversationConfig = ConversationConfig()


def run(config: RMConfig, launch: Launch) -> int:
    """Train a reward model; its head is a scalar whatever the config's model says."""
    data = config.data
    if not data.train:
        raise ConfigError("--data.train: needs at least one file of rankings")
    chat, structure = open_chat(config.tokenizer, data, config.model)
    options = (chat, structure, data.sequence_length)
    train = RankedAnswers(data.train, *options)
    heldout = RankedAnswers(data.heldout, *options) if data.heldout else None
    stage = set_up(config, launch)
    with stage.watchdog:
        return _train(config, stage, train, heldout)


def _train(
    config: RMConfig, stage: Stage, train: RankedAnswers, heldout: RankedAnswers | None
) -> int:
    value_model = config.model.model_copy(update={"head": "value"})
    model = stage.model(value_model, config.checkpoint.start)
    trainer, (learner,) = stage.trainer(("model", model))
    trainer.resume()
    loader = Loader(
        train,
        _make,
        share_of(config.train, stage.mesh),
        seed=config.run.seed,
        consumed_samples=trainer.progress.consumed_samples,
    )

    def check() -> dict[str, float]:
        return heldout_accuracy(model, heldout, stage) if heldout else {}

    trainer.fit(loader, _step(stage, learner, trainer), check if heldout else None)
    return 0


def _make(rankings: Sequence, sample_ids: Sequence[int]) -> tuple[Batch, Rankings]:
    made = ranking_batch(rankings, sample_ids)
    return made.batch, Rankings(made.sequences, made.ends, made.valid)


def _step(stage: Stage, learner: Learner, trainer: Trainer):
    def work(items: list[tuple[Batch, Rankings]]) -> dict[str, float]:
        started = time.perf_counter()
        count = sum(len(rankings.rows) for _, rankings in items)
        moved = [(batch, _to(rankings, stage.mesh.device)) for batch, rankings in items]
        metrics = learner.step(
            moved,
            lambda scale: Task(Values(), RankingLoss(scale)),
            count,
            trainer.progress.consumed_samples,
        )
        metrics["accuracy"] = metrics.pop("correct_pairs") / max(metrics.pop("pairs"), 1.0)
        seconds = time.perf_counter() - started
        return metrics | stage.speed.measure([batch for batch, _ in items], seconds)

    return work


def _to(rankings: Rankings, device: torch.device) -> Rankings:
    return Rankings(*(t.to(device) for t in (rankings.rows, rankings.ends, rankings.valid)))


def heldout_accuracy(model: Model, dataset: RankedAnswers, stage: Stage) -> dict[str, float]:
    """Share of all held-out pairs that are ranked right. Comm: all-reduce over dp.

    Ranks read disjoint samples; each runs the same number of forward passes, the last of them
    perhaps on samples that don't count.
    """
    mesh, size = stage.mesh, stage.config.train.micro_batch_size
    own = list(range(mesh.dp.rank, len(dataset), mesh.dp.size))
    passes = -(-len(range(0, len(dataset), mesh.dp.size)) // size)
    correct, pairs = torch.zeros(()), torch.zeros(())
    for number in range(passes):
        part = own[number * size : (number + 1) * size]
        batch, rankings = _make([dataset[i] for i in part or [0]], part or [0])
        (values,) = model.evaluate([batch.to(mesh.device)], Values())
        scores = values.cpu()[rankings.rows, rankings.ends]
        difference, kept = ranking_pairs(scores, rankings.valid)
        if part:
            correct += ((difference > 0) & kept).sum()
            pairs += kept.sum()
    sums = {"correct": correct.to(mesh.device), "pairs": pairs.to(mesh.device)}
    total = sum_metrics(sums, mesh.dp)
    return {"heldout_accuracy": total["correct"] / max(total["pairs"], 1.0)}
