"""Steps and evaluations of the next-token loss, for pretraining and fine-tuning."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field

from megalite.data.loader import Dataset, passes_over, spread
from megalite.distributed.sums import sum_count
from megalite.engine.model import Model, Task
from megalite.errors import DataError
from megalite.models.batch import Batch
from megalite.models.outputs import Loss, Scale
from megalite.stages.setup import Stage, StageConfig
from megalite.training.learner import Learner
from megalite.training.progress import Progress, StepResult
from megalite.training.trainer import DoStep, Evaluate

MakeTextBatch = Callable[[Sequence[Any], Sequence[int]], Batch]


class LanguageConfig(StageConfig):
    """A stage that learns each next token: what its loss has beside the cross-entropy."""

    z_loss: float = Field(
        0.0, ge=0, description="weight of the z-loss, the squared logarithm of the softmax's sum"
    )
    max_z_loss: float = Field(
        0.0, ge=0, description="weight of the largest logit's square (Baichuan 2: 2e-4)"
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target that is uniform over the vocabulary"
    )

    def loss(self, scale: Scale = 1.0) -> Loss:
        """What the model is asked for; ``scale`` is one over the targets of the global batch."""
        return Loss(scale, self.label_smoothing, self.z_loss, self.max_z_loss)


def language_step(stage: Stage, learner: Learner, config: LanguageConfig) -> DoStep[list[Batch]]:
    """A step of the next-token loss over a step's micro-batches."""

    def work(batches: list[Batch], progress: Progress) -> StepResult:
        targets = sum(batch.num_targets for batch in batches)
        counts = stage.counts(targets, batches)
        update = learner.begin(
            [(batch, None) for batch in batches],
            lambda scale: Task(config.loss(scale)),
            counts,
            progress.consumed_samples,
        )
        return StepResult(
            lambda seconds: update.metrics() | stage.speed.rates(counts.numbers(), seconds())
        )

    return work


def heldout_evaluation(
    stage: Stage, model: Model, dataset: Dataset, make: MakeTextBatch
) -> Evaluate:
    """What measures the loss on held-out samples.

    Raises:
        DataError: none of them has a target.

    Comm: all-reduce of a count over dp.
    """
    batches = heldout_batches(stage, dataset, make)
    mesh = stage.mesh
    targets = sum_count(sum(batch.num_targets for batch in batches), mesh.dp, mesh.device)
    if not targets:
        raise DataError(
            "--data.heldout: none of the samples that are evaluated has a target: give others"
        )

    def heldout_loss() -> dict[str, float]:
        """Mean loss per target, in nats. Comm: all-reduce over dp."""
        losses = torch.stack(model.evaluate(batches, Loss()))
        return {
            "heldout_loss": sum_count(float(losses.double().sum()), mesh.dp, mesh.device) / targets
        }

    return heldout_loss


def heldout_batches(stage: Stage, dataset: Dataset, make: MakeTextBatch) -> list[Batch]:
    """This rank's held-out micro-batches: the same samples at every evaluation.

    Samples are taken evenly over the data, each once over all ranks; a rank that has none left
    gets a batch without targets.
    """
    train, dp = stage.config.train, stage.mesh.dp
    numbers = spread(train.evaluate_samples, len(dataset))
    batches = []
    for places in passes_over(len(numbers), train.micro_batch_size, dp.rank, dp.size):
        part = [numbers[place] for place in places or [0]]
        batch = make([dataset[number] for number in part], part)
        batches.append((batch if places else batch.without_targets()).to(stage.mesh.device))
    return batches
