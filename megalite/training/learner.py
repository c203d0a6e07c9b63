"""A model that learns: its optimizer, loss scale and learning rate, one optimizer step a call."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from megalite.config.amount import share_of
from megalite.config.course import value_at
from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import Counts
from megalite.distributed.transfer import Reading
from megalite.engine.gradients import clip_grad_norm
from megalite.engine.model import Item, Model, Task
from megalite.engine.weights import EMBEDDINGS
from megalite.errors import CheckpointError
from megalite.layers.shards import gradient_of, local_part
from megalite.models.outputs import Scale
from megalite.seeds import fold
from megalite.training.average import Average
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.heap import keep_freed_memory
from megalite.training.loss_scale import LossScale, ScaleAhead
from megalite.training.optimizer import build_optimizer, named_state, set_rate, step_unless
from megalite.training.progress import Progress
from megalite.training.recheck import Passed, Passes, Recheck
from megalite.training.schedule import Clock, total_samples
from megalite.training.watchdog.heartbeat import Heartbeat

TARGETS = "targets"  # in a step's counts: what its loss is divided by
AVERAGES = "averages"  # in its facts: whether a checkpoint has means of the weights
_NORM, _BAD = "/norm", "/bad"  # among a step's numbers; no metric has a slash

MakeTask = Callable[[Scale], Task]


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
    """A model with its optimizer: one call is one optimizer step, in any layout.

    :meth:`begin` queues a step on the device and waits for nothing, as nothing in it depends on a
    number that the host would have to read: the optimizer leaves parameters and state as they are
    where the gradients are not finite, and the loss scale is changed on the device too. What it
    gives back is read when the host needs it, in the order of the steps; only then does
    :attr:`scale` count the step, which may end the run.

    Attributes:
        bounds: a step whose metric of a name is above its bound changes nothing.
        recheck: has steps computed again.
    """

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
        decay = learning.train.average
        self.average = Average(model, decay) if decay else None
        self.scale = LossScale.of(learning.train.precision)
        self.total_samples = total_samples(learning.train, Progress())
        self.updates = 0
        self.bounds: Mapping[str, float] = {}
        has_scale = learning.train.precision == "fp16"
        self.recheck = Recheck(learning.train.recheck, model, has_scale)
        self._unread = 0  # steps whose numbers the host has not read
        self._ahead: ScaleAhead | None = None

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
            Its metrics; see :class:`Update`.

        Comm: as :meth:`begin`, and an all-reduce of a count over dp.
        """
        counts = Counts({TARGETS: count}, self.mesh.dp, self.mesh.device)
        return self.begin(items, make_task, counts, consumed_samples).metrics()

    def begin(
        self,
        items: Sequence[Item],
        make_task: MakeTask,
        counts: Counts,
        consumed_samples: int,
    ) -> "Update":
        """Queue one step; see :meth:`step`.

        Args:
            items: this data-parallel rank's.
            make_task: makes the output and loss, given 1 / (the count over all ranks).
            counts: has ``TARGETS``, the number of targets, rankings or answer tokens.
            consumed_samples: of the steps before; the learning rate depends on it.

        Returns:
            What the step gives; it is to be read once, before that of a later step.

        Comm: one all-reduce of the gradients' sum of squares, a flag and the metrics over the
        world, beside what the model's passes communicate.
        """
        scale = self._scale_ahead()
        learning_rate = self.clock.learning_rate(consumed_samples)
        set_rate(self.optimizer, learning_rate)
        task = make_task(counts.share(TARGETS))
        step = scale, consumed_samples
        passed = self._pass(items, task, *step)
        if why := self.recheck.wants(passed):
            passes = Passes(
                lambda: self._pass(items, task, *step),
                lambda others, times: self._pass(others, task, *step, times),
                items,
            )
            passed = self.recheck.judge(why, passed, passes)
        self.heartbeat.enter("optimizer", self.model)
        dropped = self._is_dropped(passed)
        step_unless(self.optimizer, dropped)
        if self.average is not None:
            self.average.update(dropped)
        self._drop_gradients()
        if self._ahead is not None:
            self._ahead = self._ahead.after(passed.bad)
        self.updates, self._unread = self.updates + 1, self._unread + 1
        totals = passed.totals
        numbers = torch.stack((passed.norm.float().double(), passed.bad, *totals.values()))
        reading = Reading((_NORM, _BAD, *totals), numbers)
        return Update(self, reading, learning_rate, self.updates)

    def _pass(
        self,
        items: Sequence[Item],
        task: Task,
        scale: Scale,
        consumed_samples: int,
        times: float = 1.0,
    ) -> Passed:
        """Make the gradients of some micro-batches, clipped; those there are go.

        Args:
            items: the micro-batches.
            task: output and loss.
            scale: of the loss, under fp16.
            consumed_samples: of the steps before.
            times: what gradients of this data-parallel rank are multiplied by.
        """
        train, device = self.learning.train, self.mesh.device
        self._drop_gradients()
        self.heartbeat.enter("forward_backward", self.model)
        sums = self.model.forward_backward(
            [(batch.to(device), extra) for batch, extra in items],
            task,
            dropout_seed=self._dropout_seed(consumed_samples),
            loss_scale=scale if times == 1.0 else scale * times,
        )
        self._shrink_embedding(consumed_samples)
        self.heartbeat.enter("reduce", self.model)
        names = sorted(sums)
        beside = torch.stack([sums[name].double() for name in names])
        max_norm = value_at(train.max_grad_norm, consumed_samples, self.total_samples)
        norm, bad, totals = clip_grad_norm(self.model, max_norm, scale, beside)
        by_name = dict(zip(names, totals.unbind(), strict=True))
        return Passed(norm, bad, by_name, sums["loss"])

    def _drop_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def _is_dropped(self, passed: Passed) -> Tensor:
        """Whether a step changes nothing: its gradients are not finite, or a bound says so."""
        numbers = {**passed.totals, "grad_norm": passed.norm.float()}
        is_dropped = passed.bad > 0
        for name, bound in self.bounds.items():
            is_dropped = is_dropped | (numbers[name].double() > bound)
        return is_dropped

    def _scale_ahead(self) -> Scale:
        """What the next step's loss is multiplied by, on the device under fp16."""
        if self.learning.train.precision != "fp16":
            return 1.0
        if self._ahead is None or not self._unread:
            self._ahead = ScaleAhead.of(self.scale, self.mesh.device)
        return self._ahead.value

    def count_step(self, is_finite: bool, step: int) -> None:
        """Count a step that was read; see :meth:`LossScale.update`."""
        train = self.learning.train
        self._unread -= 1
        self.scale.update(is_finite, train.precision, train.max_bad_steps, step)

    def _shrink_embedding(self, consumed_samples: int) -> None:
        """Multiply the gradients of tokens' embeddings by their factor.

        Source: Zeng et al. 2022, arXiv:2210.02414, section 3.
        """
        told = self.learning.train.embedding_gradient
        factor = value_at(told, consumed_samples, self.total_samples)
        for name, parameter in self.model.named_parameters() if factor != 1.0 else ():
            if name in EMBEDDINGS and parameter.grad is not None:
                local_part(gradient_of(parameter)).mul_(factor)

    def _dropout_seed(self, consumed_samples: int) -> int | None:
        """Of the step after so many samples; None where nothing is dropped."""
        until = share_of(self.learning.train.dropout_until, self.total_samples)
        is_over = until < 1.0 and consumed_samples >= until * self.total_samples
        if is_over or not (self.model.config.drops or self.model.lora.dropout):
            return None
        return fold(self.learning.seed, self.updates)

    def tensors(self) -> dict[str, Tensor]:
        """What learns, its means and the optimizer's state by name, for a checkpoint."""
        self.model.reshard()
        learned = ((n, p) for n, p in self.model.named_parameters() if p.requires_grad)
        named = {f"{self.name}.{n}": p.detach() for n, p in learned}
        state = named_state(self.model, self.optimizer)
        averaged = self.average.tensors if self.average is not None else {}
        named |= {f"{self.name}_average.{n}": value for n, value in averaged.items()}
        return named | {f"{self.name}_optimizer.{n}": value for n, value in state.items()}

    def facts(self) -> dict[str, float]:
        """The rest of its state; every step was read before."""
        assert not self._unread
        averages = {AVERAGES: 1.0} if self.average is not None else {}
        return {**self.scale.facts(), "updates": self.updates, **averages}

    def check_state(self, facts: Mapping[str, float] | None, path: Path) -> None:
        """Refuse a checkpoint that lacks what this learner goes on from.

        Args:
            facts: those of this learner there.
            path: of the checkpoint.

        Raises:
            CheckpointError: it says what is missing, and what to do.
        """
        if not facts:
            raise CheckpointError(
                f"{path}: has no training state of {self.name}: it is of another stage, or "
                "weights alone: give this run a folder of its own, and start it from there "
                "with --checkpoint.start"
            )
        if self.average is not None and not facts.get(AVERAGES):
            raise CheckpointError(
                f"--train.average {self.learning.train.average:g}: {path} has no mean of the "
                "weights, which begins with the run: give 0, or this run a folder of its own"
            )

    def restore(self, facts: dict[str, float]) -> None:
        """Take :meth:`facts` back, after the tensors were loaded in place."""
        self.scale.restore(facts)
        self.updates = int(facts["updates"])
        self.model.copy_duplicates()


@dataclass(frozen=True)
class Update:
    """An optimizer step that is queued on the device.

    Attributes:
        learner: whose.
        reading: its numbers.
        learning_rate: of the step.
        number: of the step among the learner's, from 1.
    """

    learner: Learner
    reading: Reading
    learning_rate: float
    number: int

    def metrics(self) -> dict[str, float]:
        """Wait for the step and count it.

        Returns:
            The loss and the task's metrics over the global batch, ``grad_norm`` (not a number
            where the step was dropped), ``learning_rate``, and for fp16 ``loss_scale``; the same
            on all processes.

        Raises:
            MegaliteError: too many steps were not finite.
        """
        metrics = self.reading.numbers()
        norm, is_finite = metrics.pop(_NORM), metrics.pop(_BAD) == 0
        # the sum of the finite parts is no norm
        metrics["grad_norm"] = norm if is_finite else math.nan
        metrics["learning_rate"] = self.learning_rate
        if self.learner.learning.train.precision == "fp16":
            metrics["loss_scale"] = self.learner.scale.value
        self.learner.count_step(is_finite, self.number)
        return metrics
