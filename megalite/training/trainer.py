"""The one training loop: every stage brings its data, what the model gives, and a loss."""

import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import is_true_anywhere, sum_count, sum_metrics
from megalite.engine.gradients import clip_grad_norm
from megalite.engine.model import Item, Model, Task
from megalite.errors import Stopped
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.ops.random import fold
from megalite.training.checkpoint import CheckpointManager, load
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.flops import step_operations
from megalite.training.heap import keep_freed_memory
from megalite.training.heartbeat import Heartbeat
from megalite.training.optimizer import build_optimizer, named_state, set_rate
from megalite.training.precision import LossScale
from megalite.training.run_log import RunLog, memory_gib
from megalite.training.schedule import rate

MakeTask = Callable[[float], Task]


@dataclass
class Progress:
    """Where a run is; all of its state that isn't a tensor.

    Attributes:
        step: optimizer steps done, those without finite gradients included.
        consumed_samples: samples of those steps.
        extra: a stage's own numbers, such as PPO's KL coefficient.
    """

    step: int = 0
    consumed_samples: int = 0
    extra: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Learning:
    """How parameters are moved.

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
        heart: Heartbeat | None = None,
    ) -> None:
        """Make the optimizer's state.

        Args:
            model: a Transformer or a Pipeline.
            mesh: its mesh.
            learning: how it learns.
            name: of this model among a stage's; its tensors are saved under it.
            heart: is told what is being done.
        """
        if mesh.device.type == "cpu":
            keep_freed_memory()
        self.heart = heart or Heartbeat()
        self.model, self.mesh, self.learning, self.name = model, mesh, learning, name
        self.optimizer = build_optimizer(model, learning.optimizer)
        self.scale = LossScale.of(learning.train.precision)
        self.total_samples = learning.train.steps * learning.train.global_batch_size
        self.updates = 0

    def set_learning_rate(self, peak: float) -> None:
        """Give this model a peak learning rate of its own."""
        optimizer = self.learning.optimizer.model_copy(update={"learning_rate": peak})
        self.learning = replace(self.learning, optimizer=optimizer)

    def step(
        self, items: Sequence[Item], make_task: MakeTask, count: int, consumed_samples: int
    ) -> dict[str, float]:
        """Learn from the micro-batches of one step.

        Args:
            items: this data-parallel rank's.
            make_task: given 1 / (the whole step's count), the output and loss.
            count: what this rank's items weigh: targets, rankings or answer tokens.
            consumed_samples: of the steps before; the learning rate depends on it.

        Returns:
            The loss and the task's metrics over the global batch, ``grad_norm``,
            ``learning_rate``, and for fp16 ``loss_scale``; the same on all processes.

        Comm: all-reduce of a count over dp, of two numbers and of the metrics over the world.
        """
        train, mesh = self.learning.train, self.mesh
        total = sum_count(count, mesh.dp, mesh.device)
        learning_rate = self.learning.optimizer.learning_rate * rate(
            self.learning.schedule, consumed_samples, self.total_samples
        )
        set_rate(self.optimizer, learning_rate)
        self.heart.enter("forward_backward", self.model)
        sums = self.model.forward_backward(
            [(batch.to(mesh.device), extra) for batch, extra in items],
            make_task(1.0 / max(total, 1.0)),
            dropout_seed=fold(self.learning.seed, self.updates) if self._drops() else None,
            loss_scale=self.scale.value,
        )
        self.heart.enter("reduce", self.model)
        norm, bad = clip_grad_norm(self.model, train.max_grad_norm, self.scale.value)
        is_finite = int(bad) == 0
        self.heart.enter("optimizer", self.model)
        if is_finite:
            self.optimizer.step()
        for parameter in self.model.parameters():
            parameter.grad = None
        self.updates += 1
        metrics = sum_metrics(sums, mesh.dp)
        metrics |= {"grad_norm": float(norm), "learning_rate": learning_rate}
        if train.precision == "fp16":
            metrics["loss_scale"] = self.scale.value
        self.scale.update(is_finite, train.precision, train.max_bad_steps, self.updates)
        return metrics

    def _drops(self) -> bool:
        config: ModelConfig = self.model.config
        return config.dropout > 0 or config.attention_dropout > 0

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and optimizer state by name, for a checkpoint."""
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


class StopSignal:
    """SIGTERM and SIGINT ask for a stop at the end of a step; a second one kills."""

    def __init__(self, mesh: Mesh) -> None:
        """Catch the signals from now on."""
        self._mesh, self.received = mesh, 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: Any) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGINT and self._mesh.world.rank == 0:
            os.write(2, b"\nmegalite: stopping after this step; once more ends at once\n")

    def ignore(self) -> None:
        """Ignore SIGTERM from now on: torchrun sends it to all as soon as the first has ended."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def anywhere(self, elsewhere: bool = False) -> bool:
        """Whether any process was asked to stop, or ``elsewhere``. Comm: all-reduce of a number."""
        is_asked = self.received > 0 or elsewhere
        return is_true_anywhere(is_asked, self._mesh.world, self._mesh.device)


class Trainer:
    """Steps, evaluations, metrics and checkpoints of a run.

    Attributes:
        progress: where the run is.
        asked_elsewhere: a process outside the mesh was asked to stop, as this one knows.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        log: RunLog,
        checkpoints: CheckpointManager,
        every: int,
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        """Hold the parts of a run.

        Args:
            learners: the models that learn: one, or PPO's actor and critic.
            log: of the run's folder.
            checkpoints: of the run's folder.
            every: steps between checkpoints; 0: at the end only.
            origin: facts of where the weights came from, which every checkpoint keeps.
        """
        self._learners, self._log, self._origin = learners, log, origin or {}
        self._checkpoints, self._every = checkpoints, every
        self.progress, self.asked_elsewhere = Progress(), False
        self.mesh, self.heart = learners[0].mesh, learners[0].heart
        self.train = learners[0].learning.train

    def resume(self) -> bool:
        """Go on from the run's newest whole checkpoint, where there is one.

        Raises:
            CheckpointError: it is of another model.
        """
        found = self._checkpoints.latest()
        if found is None:
            self._log.rewind(-1)
            return False
        path, facts = found
        load(path, self._tensors())
        for learner in self._learners:
            learner.restore(facts["learners"][learner.name])
        self.progress = Progress(facts["step"], facts["consumed_samples"], dict(facts["extra"]))
        self._log.rewind(self.progress.step)
        self._log.say(f"goes on from {path}")
        return True

    def _tensors(self) -> dict[str, Tensor]:
        return {k: v for learner in self._learners for k, v in learner.tensors().items()}

    def save(self) -> None:
        """Save the run's state."""
        progress = self.progress
        self.heart.enter("save")
        facts = {
            **self._origin,
            "step": progress.step,
            "consumed_samples": progress.consumed_samples,
            "extra": progress.extra,
            "learners": {learner.name: learner.facts() for learner in self._learners},
            "model": self._learners[0].model.config.model_dump(),
        }
        self._checkpoints.save(progress.step, self._tensors(), facts)

    def fit(
        self,
        steps: Iterable[Any],
        work: Callable[[Any], dict[str, float]],
        evaluate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Run until the configured number of steps.

        Args:
            steps: what each step works on; already at ``progress``.
            work: does one step; gives its metrics.
            evaluate: gives metrics of held-out data.

        Raises:
            Stopped: a signal came; the state is saved.
        """
        stop, train, progress, heart = StopSignal(self.mesh), self.train, self.progress, self.heart
        if evaluate and train.evaluate_every and progress.step == 0:
            self._log.metrics(0, evaluate(), show=True)
        iterator = iter(steps)
        while progress.step < train.steps:
            started = time.perf_counter()
            heart.step = progress.step + 1
            heart.enter("data")
            values = work(next(iterator))
            progress.step += 1
            progress.consumed_samples += train.global_batch_size
            values["step_s"] = time.perf_counter() - started
            self._derive(values)
            is_last = progress.step == train.steps
            every = train.evaluate_every
            if evaluate and every and (is_last or progress.step % every == 0):
                heart.enter("evaluate")
                values |= evaluate()
            show = is_last or progress.step % train.log_every == 0 or progress.step == 1
            self._log.metrics(progress.step, values, show)
            is_asked = stop.anywhere(self.asked_elsewhere)
            if is_last or is_asked or (self._every and progress.step % self._every == 0):
                self.save()
            if is_asked and not is_last:
                self._finish()
                stop.ignore()
                raise Stopped(f"stopped on request; step {progress.step} is saved")
        self._finish()
        heart.enter("end")

    def _finish(self) -> None:
        """Wait until all is on the disk."""
        self.heart.enter("save")
        self._checkpoints.wait()
        self._log.close()

    def _derive(self, values: dict[str, float]) -> None:
        seconds = values["step_s"]
        if "tokens" in values:
            values["tokens_per_s"] = values["tokens"] / seconds
        values["memory_gib"] = memory_gib(self.mesh.device)


class Speed:
    """Tokens and operations of a step, for tokens/s, TFLOP/s, MFU and HFU."""

    def __init__(
        self,
        config: ModelConfig,
        mesh: Mesh,
        peak_tflops: float,
        recomputed: tuple[int, int] = (0, 0),
    ):
        """Hold what is needed.

        Args:
            config: of the model.
            mesh: its mesh.
            peak_tflops: of one device.
            recomputed: encoder and decoder blocks whose forward pass is made again.
        """
        self._config, self._mesh = config, mesh
        self._peak, self._recomputed = peak_tflops, recomputed

    def measure(self, batches: Sequence[Batch], seconds: float) -> dict[str, float]:
        """Metrics of a step over these micro-batches of this rank.

        Comm: all-reduce of three numbers over dp.
        """
        tokens = sum(int((~batch.decoder.mask.is_empty).sum()) for batch in batches)
        done = [step_operations(self._config, batch, self._recomputed) for batch in batches]
        sums = {
            "tokens": float(tokens),
            "model": sum(operations.model for operations in done),
            "hardware": sum(operations.hardware for operations in done),
        }
        device = self._mesh.device
        moved = {n: torch.tensor(v, dtype=torch.float64, device=device) for n, v in sums.items()}
        total = sum_metrics(moved, self._mesh.dp)
        per_rank = seconds * self._mesh.world.size * 1e12
        tflops = total["model"] / per_rank
        return {
            "tokens": total["tokens"],
            "tflops_per_rank": tflops,
            "mfu": tflops / self._peak,
            "hfu": total["hardware"] / per_rank / self._peak,
        }
