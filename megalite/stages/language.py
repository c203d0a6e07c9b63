"""Steps and evaluations of the next-token loss, for pretraining and fine-tuning."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from megalite.data.loader import Dataset
from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import sum_metrics
from megalite.engine.model import Model, Task
from megalite.models.batch import Batch
from megalite.models.outputs import Loss
from megalite.stages.setup import Stage
from megalite.training.learner import Learner
from megalite.training.progress import Progress, StepResult
from megalite.training.trainer import DoStep, Evaluate

MakeTextBatch = Callable[[Sequence[Any], Sequence[int]], Batch]


def language_step(stage: Stage, learner: Learner, z_loss: float = 0.0) -> DoStep[list[Batch]]:
    """A step of the next-token loss over a step's micro-batches."""

    def work(batches: list[Batch], progress: Progress) -> StepResult:
        started = time.perf_counter()
        count = sum(batch.num_targets for batch in batches)
        metrics = learner.step(
            [(batch, None) for batch in batches],
            lambda scale: Task(Loss(scale, z_loss=z_loss)),
            count,
            progress.consumed_samples,
        )
        return StepResult(metrics | stage.speed.measure(batches, time.perf_counter() - started))

    return work


def heldout_evaluation(
    stage: Stage, model: Model, dataset: Dataset | None, make: MakeTextBatch
) -> Evaluate | None:
    """What measures the loss on held-out samples; None without any."""
    if dataset is None:
        return None
    batches = heldout_batches(stage, dataset, make)
    return lambda: {"heldout_loss": heldout_loss(model, batches, stage.mesh)}


def heldout_batches(stage: Stage, dataset: Dataset, make: MakeTextBatch) -> list[Batch]:
    """This rank's held-out micro-batches: the same samples at every evaluation.

    Samples are taken evenly over the data; their number is rounded up to fill all ranks' batches.
    """
    train, dp = stage.config.train, stage.mesh.dp
    unit = train.micro_batch_size * dp.size
    wanted = min(train.evaluate_samples, len(dataset))
    count = -(-wanted // unit) * unit
    numbers = [i * len(dataset) // count for i in range(count)]
    own = numbers[dp.rank :: dp.size]
    size = train.micro_batch_size
    parts = [own[at : at + size] for at in range(0, len(own), size)]
    return [make([dataset[n] for n in part], part).to(stage.mesh.device) for part in parts]


def heldout_loss(model: Model, batches: Sequence[Batch], mesh: Mesh) -> float:
    """Mean loss per target of held-out batches, in nats. Comm: all-reduce over dp."""
    losses = model.evaluate(batches, Loss())
    sums = {
        "loss": torch.stack(losses).sum(),
        "targets": torch.tensor(float(sum(b.num_targets for b in batches)), device=mesh.device),
    }
    total = sum_metrics(sums, mesh.dp)
    return total["loss"] / max(total["targets"], 1.0)
