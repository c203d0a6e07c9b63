"""The one training loop; each stage brings its items, its work on one, and its evaluation."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from megalite.engine.weights import check_same_model
from megalite.errors import Stopped
from megalite.models.config import ModelConfig
from megalite.training.checkpoint.load import load
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import Facts
from megalite.training.learner import Learner
from megalite.training.metrics.device import memory_gib
from megalite.training.metrics.run_log import RunLog
from megalite.training.progress import Progress, StepResult
from megalite.training.stop import StopSignal

StepItem = TypeVar("StepItem")
DoStep = Callable[[StepItem, Progress], StepResult]
Evaluate = Callable[[], dict[str, float]]


class Trainer:
    """Steps, evaluations, metrics and checkpoints of a run.

    Attributes:
        progress: where the run is.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        log: RunLog,
        checkpoints: CheckpointManager,
        every: int,
        origin: Facts | None = None,
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
        self._checkpoints, self._save_every = checkpoints, every
        self._mesh, self._heartbeat = learners[0].mesh, learners[0].heartbeat
        self._train = learners[0].learning.train
        self.progress = Progress()

    def resume(self) -> Progress:
        """Resume from the run's newest intact checkpoint, if there is one; give where the run is.

        Raises:
            CheckpointError: it is of another model.
        """
        found = self._checkpoints.latest()
        if found is None:
            self._log.rewind(-1)
            return self.progress
        path, facts = found
        stored = ModelConfig(**facts["model"])
        check_same_model(self._learners[0].model.config, stored, str(path))
        load(path, self._tensors())
        for learner in self._learners:
            learner.restore(facts["learners"][learner.name])
        self.progress = Progress(facts["step"], facts["consumed_samples"], facts["extra"])
        self._log.rewind(self.progress.step)
        self._log.say(f"resuming from {path}")
        return self.progress

    def _tensors(self) -> dict[str, Tensor]:
        return {k: v for learner in self._learners for k, v in learner.tensors().items()}

    def save(self) -> None:
        """Save the run's state."""
        progress = self.progress
        self._heartbeat.enter("save")
        facts = {
            **self._origin,
            "step": progress.step,
            "consumed_samples": progress.consumed_samples,
            "extra": dict(progress.extra),
            "learners": {learner.name: learner.facts() for learner in self._learners},
            "model": self._learners[0].model.config.model_dump(),
        }
        self._checkpoints.save(progress.step, self._tensors(), facts)

    def fit(
        self, items: Iterable[StepItem], work: DoStep[StepItem], evaluate: Evaluate | None = None
    ) -> None:
        """Run until the configured number of steps.

        Args:
            items: what each step works on, from :attr:`progress` on.
            work: does one step.
            evaluate: gives metrics of held-out data.

        Raises:
            Stopped: a signal came; the state is saved.
        """
        stop = StopSignal(self._mesh)
        if evaluate and self._train.evaluate_every and self.progress.step == 0:
            self._log.metrics(0, evaluate(), show=True)
        remaining = iter(items)
        while not self._is_done():
            asked_elsewhere = self._step(remaining, work, evaluate)
            is_asked = stop.anywhere(asked_elsewhere)
            if self._is_done() or is_asked or self._is_turn(self._save_every):
                self.save()
            if is_asked and not self._is_done():
                self._finish()
                stop.ignore()
                raise Stopped(f"stopped on request; step {self.progress.step} is saved")
        self._finish()
        self._heartbeat.enter("end")

    def _step(
        self, items: Iterator[StepItem], work: DoStep[StepItem], evaluate: Evaluate | None
    ) -> bool:
        """Do one step and log it; say whether a process outside the mesh was asked to stop."""
        started = time.perf_counter()
        self._heartbeat.step = self.progress.step + 1
        self._heartbeat.enter("data")
        result = work(next(items), self.progress)
        self.progress = self.progress.after_step(self._train.global_batch_size, result.extra)
        metrics = {**result.metrics, "step_s": time.perf_counter() - started}
        if "tokens" in metrics:
            metrics["tokens_per_s"] = metrics["tokens"] / metrics["step_s"]
        metrics["memory_gib"] = memory_gib(self._mesh.device)
        every = self._train.evaluate_every
        if evaluate and every and (self._is_done() or self._is_turn(every)):
            self._heartbeat.enter("evaluate")
            metrics |= evaluate()
        step = self.progress.step
        show = step == 1 or self._is_done() or self._is_turn(self._train.log_every)
        self._log.metrics(step, metrics, show)
        return result.asked_to_stop

    def _is_done(self) -> bool:
        return self.progress.step >= self._train.steps

    def _is_turn(self, every: int) -> bool:
        """Whether something is due that happens every so many steps; 0: never."""
        return every > 0 and self.progress.step % every == 0

    def _finish(self) -> None:
        """Wait until everything is on the disk."""
        self._heartbeat.enter("save")
        self._checkpoints.wait()
        self._log.close()
