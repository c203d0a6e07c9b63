"""A model that learns: its optimizer, loss scale and learning rate, one optimizer step a call."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import sum_count, sum_metrics
from megalite.engine.gradients import clip_grad_norm
from megalite.engine.model import Item, Model, Task
from megalite.ops.random import fold
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.heap import keep_freed_memory
from megalite.training.loss_scale import LossScale
from megalite.training.optimizer import build_optimizer, named_state, set_rate
from megalite.training.progress import Progress
from megalite.training.schedule import Clock, total_samples
from megalite.training.watchdog.heartbeat import Heartbeat

MakeTask = Callable[[float], Task]


@dataclass(frozen=True)
class Learning:
    """How parameters are updated.

    Attributes:
        train: sizes, precision and clipping.
        optimizer: AdamW's numbers.
        schedule: the learning rate over samples.
        seed: of dropout.
    """

    train: TrainConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    seed: int


class Learner:
    """A model with its optimizer: one call is one optimizer step, in any layout."""

    def __init__(
        self,
        model: Model,
        mesh: Mesh,
        learning: Learning,
        name: str = "model",
        heartbeat: Heartbeat | None = None,
    ) -> None:
        """Make the optimizer's state.

        Args:
            model: that learns.
            mesh: its mesh.
            learning: how it learns.
            name: of this model among a stage's; its tensors are saved under it.
            heartbeat: is told what is being done.
        """
        if mesh.device.type == "cpu":
            keep_freed_memory()
        self.heartbeat = heartbeat or Heartbeat()
        self.model, self.mesh, self.learning, self.name = model, mesh, learning, name
        self.optimizer = build_optimizer(model, learning.optimizer)
        self.scale = LossScale.of(learning.train.precision)
        self.total_samples = total_samples(learning.train, Progress())
        self.updates = 0

    def set_learning_rate(self, peak: float) -> None:
        """Give this model a peak learning rate of its own."""
        optimizer = self.learning.optimizer.model_copy(update={"learning_rate": peak})
        self.learning = replace(self.learning, optimizer=optimizer)

    @property
    def clock(self) -> Clock:
        """The learning rate over the run's samples."""
        learning = self.learning
        return Clock(learning.schedule, learning.optimizer.learning_rate, self.total_samples)

    def set_clock(self, progress: Progress) -> None:
        """Go on from ``progress``: what was seen counts as it was, whatever the batch is now."""
        self.total_samples = total_samples(self.learning.train, progress)

    def step(
        self, items: Sequence[Item], make_task: MakeTask, count: int, consumed_samples: int
    ) -> dict[str, float]:
        """Learn from the micro-batches of one step.

        Args:
            items: this data-parallel rank's.
            make_task: makes the output and loss, given 1 / (the count over all ranks).
            count: number of targets, rankings or answer tokens in this rank's items.
            consumed_samples: of the steps before; the learning rate depends on it.

        Returns:
            The loss and the task's metrics over the global batch, ``grad_norm`` (not a number
            where the step was dropped), ``learning_rate``, and for fp16 ``loss_scale``; the same
            on all processes.

        Comm: all-reduce of a count over dp, of two numbers and of the metrics over the world.
        """
        train, mesh = self.learning.train, self.mesh
        total = sum_count(count, mesh.dp, mesh.device)
        learning_rate = self.clock.learning_rate(consumed_samples)
        set_rate(self.optimizer, learning_rate)
        self.heartbeat.enter("forward_backward", self.model)
        sums = self.model.forward_backward(
            [(batch.to(mesh.device), extra) for batch, extra in items],
            make_task(1.0 / max(total, 1.0)),
            dropout_seed=fold(self.learning.seed, self.updates) if self._drops() else None,
            loss_scale=self.scale.value,
        )
        self.heartbeat.enter("reduce", self.model)
        norm, bad = clip_grad_norm(self.model, train.max_grad_norm, self.scale.value)
        is_finite = int(bad) == 0
        self.heartbeat.enter("optimizer", self.model)
        if is_finite:
            self.optimizer.step()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.updates += 1
        metrics = sum_metrics(sums, mesh.dp)
        known = float(norm) if is_finite else math.nan  # the sum of the finite parts is no norm
        metrics |= {"grad_norm": known, "learning_rate": learning_rate}
        if train.precision == "fp16":
            metrics["loss_scale"] = self.scale.value
        self.scale.update(is_finite, train.precision, train.max_bad_steps, self.updates)
        return metrics

    def _drops(self) -> bool:
        config = self.model.config
        return config.dropout > 0 or config.attention_dropout > 0

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and optimizer state by name, for a checkpoint."""
        self.model.reshard()
        named = {f"{self.name}.{n}": p.detach() for n, p in self.model.named_parameters()}
        state = named_state(self.model, self.optimizer)
        return named | {f"{self.name}_optimizer.{n}": value for n, value in state.items()}

    def facts(self) -> dict[str, float]:
        """The rest of its state."""
        return {**self.scale.facts(), "updates": self.updates}

    def restore(self, facts: dict[str, float]) -> None:
        """Take :meth:`facts` back, after the tensors were loaded in place."""
        self.scale.restore(facts)
        self.updates = int(facts["updates"])
        self.model.copy_duplicates()
