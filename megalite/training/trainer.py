"""The one training loop; each stage brings its items, its work on one, and its evaluation."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from megalite.data.skipping import Ranges, in_words, merged
from megalite.distributed.beginning import WEIGHTS
from megalite.distributed.stop import BEFORE_FIRST_STEP, StopRequest
from megalite.distributed.sums import sum_count
from megalite.engine.weights import check_same_model, config_of
from megalite.errors import ConfigError, MegaliteError, SaveFailed, Stopped
from megalite.training.adapted import adapter_facts
from megalite.training.best import Best
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import Facts
from megalite.training.checkpoint.retry import LAST_PAUSES_S, Retry
from megalite.training.drift import Drift
from megalite.training.first_step import FirstStep
from megalite.training.folder.record import RunRecord
from megalite.training.folder.skips import read_skips, skipped_of, why_not
from megalite.training.folder.switches import Switches
from megalite.training.learner import Learner
from megalite.training.local_saves import LocalSaves
from megalite.training.metrics.device import memory_gib
from megalite.training.metrics.run_log import RunLog
from megalite.training.pace import PaceWatch
from megalite.training.progress import Begun, Progress, StepResult
from megalite.training.rechecks import Rechecks
from megalite.training.rollback import decide_rollback
from megalite.training.spikes import SpikeDetector
from megalite.training.stop import Asked, StopSignal

StepItem = TypeVar("StepItem")
DoStep = Callable[[StepItem, Progress], StepResult]
Evaluate = Callable[[], dict[str, float]]


class Trainer:
    """Steps, evaluations, metrics and checkpoints of a run.

    On a GPU the host reads a step's numbers after it has queued the next step: the GPU always has
    work, and the host is never more than a step ahead of it. Where the host has to know more, at
    an evaluation, a checkpoint or the end, it reads all of them first.

    Attributes:
        progress: where the run is; steps that were begun count.
        reads_behind: steps that are under way when a step's numbers are read: 0 on a CPU, and where
            a spike makes the run go back at once, or drop the step.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        log: RunLog,
        checkpoints: CheckpointManager,
        every: int,
        record: RunRecord | None = None,
        stop: StopRequest | None = None,
    ) -> None:
        """Hold the parts of a run.

        Args:
            learners: the models that learn: one, or PPO's actor and critic.
            log: of the run's folder.
            checkpoints: of the run's folder.
            every: steps between checkpoints; 0: at the end only.
            record: which run it is; every checkpoint keeps it.
            stop: what asks this process to stop.
        """
        self._learners, self._log, self._record = learners, log, record or RunRecord()
        self._checkpoints, self._save_every = checkpoints, every
        self._request = stop or StopRequest()
        self._mesh, self._heartbeat = learners[0].mesh, learners[0].heartbeat
        self._train = learners[0].learning.train
        self._ramp = self._train.ramp
        self._spikes = SpikeDetector(self._train.spikes, self._train.global_batch_size)
        self._drift = Drift(learners, self._train.drift.policy)
        self._pace, self._rechecks = PaceWatch(learners[0]), Rechecks(learners)
        self._wants_back = False
        self._best, self._is_best = Best(), False
        self.progress = Progress()
        self._spikes_dropped, policy = 0, self._train.spikes.policy
        if policy == "skip" and len(learners) > 1:
            raise ConfigError(
                "--train.spikes.policy skip: needs one model that learns; PPO has two, with many "
                "updates a step: use warn or rollback"
            )
        waits = self._mesh.device.type == "cpu" or policy in ("skip", "rollback")
        self.reads_behind = 0 if waits else 1
        self._begun: deque[Begun] = deque()
        self._asked: deque[Callable[[], Asked]] = deque()
        self._switches = Switches(log.folder, self._train.most_minutes, log.is_writer)
        self._retry = Retry()
        self._last_read = 0.0
        self._introduction: tuple[str, ...] = ()
        self._first_step = FirstStep()
        self._local = LocalSaves()

    def introduce(self, lines: Sequence[str], first_step: FirstStep) -> None:
        """Lines to say before the first step, and what tells how long it took to come there."""
        self._introduction, self._first_step = tuple(lines), first_step

    def keep_best(self, metric: str) -> None:
        """Keep the checkpoint of the best evaluation by a metric; empty: of none."""
        self._best = Best(metric, self._train.patience)

    def save_locally(self, local: LocalSaves) -> None:
        """Save on the nodes' own disks, too, and go on from there."""
        self._local = local

    def resume(self) -> Progress:
        """Resume from the run's newest intact checkpoint, if there is one; give where the run is.

        Raises:
            CheckpointError: it is of another run.
        """
        self._heartbeat.beginning.enter(WEIGHTS)
        wanted = self._wanted_skips()
        reason = partial(why_not, wanted=wanted)
        found = self._local.find(self._checkpoints, self._tensors(), reason, self._refuse)
        if found is None:
            self.progress = Progress(skipped=wanted)
            dropped = self._log.rewind(-1)
            if dropped:
                self._log.say(
                    f"no checkpoint in {self._log.folder}: its {dropped} steps begin anew"
                )
        else:
            self._go_on(*found, wanted)
        if self.progress.skipped:
            self._log.say(f"samples left out of the run's order: {in_words(self.progress.skipped)}")
        if not self._is_done():
            for line in self._introduction:
                self._log.say(line)
            if self._record.text:
                self._log.write("config.toml", self._record.text)
        self._checkpoints.tidy()
        return self.progress

    def _wanted_skips(self) -> Ranges:
        """What this start wants skipped, told or decided before. Comm: a broadcast."""
        decided = self._checkpoints.from_first(lambda: read_skips(self._log.folder))
        return merged([*self._train.skipped, *((e["first"], e["end"]) for e in decided)])

    def _refuse(self, facts: Facts) -> None:
        """Refuse a local checkpoint of another run; of shared ones the folder's opening does."""
        if self._record.stage:
            shown = self._log.folder / "checkpoints" / f"local step {facts['step']}"
            self._record.check(facts, shown)

    def _go_on(
        self,
        path: Path,
        facts: Facts,
        load_from: Callable[[dict[str, Tensor]], None],
        wanted: Ranges,
    ) -> None:
        """Take a checkpoint's state, and say what is another than when it was saved."""
        stored = config_of(facts, path)
        check_same_model(self._learners[0].model.config, stored, str(path))
        for learner in self._learners:
            learner.check_state(facts["learners"].get(learner.name), path)
        load_from(self._tensors())
        self._record = self._record.going_on(facts)
        self.progress = Progress(
            facts["step"], facts["consumed_samples"], facts["extra"], skipped_of(facts, wanted)
        )
        self._spikes.restore(facts.get("spikes", {}))
        self._spikes_dropped = facts.get("spikes_dropped", 0)
        self._best.restore(facts.get("best", {}))
        self._is_best = False
        if self._best.step and not self._checkpoints.has(self._best.step):
            self._log.say(f"the checkpoint of the best evaluation, {self._best}, is gone")
            self._best.restore({})
        for learner in self._learners:
            learner.restore(facts["learners"][learner.name])
            learner.set_clock(self.progress)
        step, steps = self.progress.step, self._train.steps
        if self._is_done():
            count = self._best.why_over() or f"{step} of {steps} steps"
            if step > steps:
                count = f"it has {step} steps, and --train.steps asks for {steps}"
            self._log.say(f"{self._log.folder}: is done: {count}")
            return
        self._log.rewind(step)
        self._log.say(f"resuming from {path}")
        clock = self._learners[0].clock
        for text in (*self._record.differences(facts), *self._record.change_of_rate(facts, clock)):
            self._log.say(text)

    def _tensors(self) -> dict[str, Tensor]:
        return {k: v for learner in self._learners for k, v in learner.tensors().items()}

    def save(self) -> None:
        """Save the run's state."""
        self._heartbeat.enter("save")
        self._local.wait(self.progress.step)
        self._checkpoints.save(self.progress.step, self._tensors(), self._facts())

    def _facts(self) -> Facts:
        """What a checkpoint keeps beside tensors; all steps were read."""
        progress = self.progress
        return {
            **self._record.facts(),
            "step": progress.step,
            "consumed_samples": progress.consumed_samples,
            "skipped": [list(one) for one in progress.skipped],
            "spikes": self._spikes.facts(),
            "spikes_dropped": self._spikes_dropped,
            "best": self._best.facts(),
            "extra": dict(progress.extra),
            "learners": {learner.name: learner.facts() for learner in self._learners},
            "model": self._learners[0].model.config.model_dump(),
            **adapter_facts(self._learners, self._record),
        }

    def fit(
        self,
        items: Callable[[Progress], Iterable[StepItem]],
        work: DoStep[StepItem],
        evaluate: Evaluate | None = None,
    ) -> None:
        """Run until the configured number of steps.

        Args:
            items: gives what each step works on that comes after some progress.
            work: does one step.
            evaluate: gives metrics of held-out data.

        Raises:
            Stopped: a signal came; the state is saved.
        """
        stop = StopSignal(self._mesh, self._request)
        self._request.begin()
        if stop.is_asked() and not self._is_done():
            stop.ignore()
            raise Stopped(BEFORE_FIRST_STEP)
        self._evaluate_start(evaluate)
        remaining = iter(items(self.progress))
        while not self._is_done():
            asked_elsewhere = self._step(remaining, work, evaluate)
            asked = self._answers(stop, asked_elsewhere)
            is_last = asked.stop or asked.end
            if is_last:
                self._read(0, evaluate)
            if asked.failed:
                self._collect()
            if asked.back and self._go_back():
                remaining = iter(items(self.progress))
                if not is_last:
                    continue
            is_last = is_last or self._is_done()
            is_saved = self._takes_best() or is_last or asked.save or self._is_save_due()
            self._look_for_drift(is_saved)
            if is_saved:
                self._read(0, evaluate)
                self._save(is_last)
            else:
                self._save_on_nodes(asked.busy, evaluate)
            if is_last and not self._is_done():
                self._leave(stop, asked.end)
        for text in filter(None, (self._best.why_over(), self._best.where(self._log.folder))):
            self._log.say(text)
        self._finish()
        self._heartbeat.enter("end")

    def _save_on_nodes(self, is_busy: bool, evaluate: Evaluate | None) -> None:
        """Begin a local checkpoint where one is due and no process still writes another."""
        if self._local.is_due(self.progress.step, is_busy):
            self._read(0, evaluate)
            self._heartbeat.enter("save")
            self._local.begin(self.progress.step, self._tensors(), self._facts())

    def _evaluate_start(self, evaluate: Evaluate | None) -> None:
        """Evaluate before the first step a run that begins, or whose metric to watch is new."""
        if evaluate and not self._train.evaluate_every:
            self._log.say("data.heldout is not evaluated: train.evaluate_every is 0")
        elif evaluate and (not self.progress.step or (self._best.is_new and not self._is_done())):
            metrics = evaluate()
            self._best.check(metrics)
            if not self.progress.step:
                self._log.metrics(0, metrics, show=True)

    def _leave(self, stop: StopSignal, is_for_good: bool) -> None:
        """End before the last step, with everything saved.

        Raises:
            Stopped: always.
        """
        self._finish()
        stop.ignore()
        stopped = Stopped(f"stopped on request; step {self.progress.step} is saved")
        stopped.is_for_good = is_for_good
        raise stopped

    def _takes_best(self) -> bool:
        """Whether this step's state is to be kept as the best one."""
        is_best, self._is_best = self._is_best, False
        return is_best

    def _is_save_due(self) -> bool:
        return self._is_turn(self._save_every) or self.progress.step == self._retry.step

    def _save(self, is_last: bool) -> None:
        """Save; what can't be written is tried again, soon or, at the end, after some seconds.

        Raises:
            SaveFailed: the last save could not be written.
        """
        self._collect()
        for pause_s in LAST_PAUSES_S if is_last else ():
            try:
                self.save()
                self._checkpoints.wait()
                return
            except SaveFailed as error:
                if error.is_forbidden:
                    raise
                self._log.say(f"{error}: the next try is in {pause_s:.0f} s")
                time.sleep(pause_s)
        try:
            self.save()
        except SaveFailed as error:
            if is_last:
                raise
            self._note_failure(error)

    def _collect(self) -> None:
        """Wait for the save that is under way, and say so if it failed."""
        self._heartbeat.enter("save")
        try:
            self._checkpoints.wait()
            self._retry.worked()
        except SaveFailed as error:
            self._note_failure(error)

    def _note_failure(self, error: SaveFailed) -> None:
        step = self._retry.failed(self.progress.step)
        self._log.say(f"{error}: training goes on, and the next try is after step {step}")

    def _step(
        self, items: Iterator[StepItem], work: DoStep[StepItem], evaluate: Evaluate | None
    ) -> Asked:
        """Begin a step and log what is known; give what a process elsewhere was asked."""
        started = time.perf_counter()
        self._heartbeat.stopwatch.begin_step()
        self._heartbeat.step = self.progress.step + 1
        self._heartbeat.enter("data")
        if self._train.spikes.policy == "skip":
            self._learners[0].bounds = self._spikes.bounds()
        with self._rechecks.of_step(self.progress.step + 1, self._spikes.bounds):
            result = work(next(items), self.progress)
        samples = self._ramp.at(self.progress.consumed_samples)
        self.progress = self.progress.after_step(samples, result.extra)
        also = self._rechecks.said(self.progress.step, self._log.say)
        self._begun.append(Begun(self.progress.step, started, result, samples, also))
        self._heartbeat.enter("log")
        self._read(self._behind(), evaluate)
        return result.asked

    def _behind(self) -> int:
        """Steps whose numbers may be unknown now."""
        is_due = self._is_save_due() or self._is_turn(self._train.evaluate_every)
        must_know = self._is_done() or is_due
        return 0 if must_know else self.reads_behind

    def _answers(self, stop: StopSignal, elsewhere: Asked) -> Asked:
        """What the run is asked, as far as that is known. Comm: two numbers over the mesh."""
        ends, saves = self._switches.look()
        back, has_failed = self._wants_back, self._checkpoints.has_failed
        busy = self._checkpoints.is_busy or self._local.is_busy
        own = Asked(False, ends, saves, back, has_failed, busy)
        self._asked.append(stop.ask(own | elsewhere))
        asked = Asked()
        while len(self._asked) > self._behind():
            asked |= self._asked.popleft()()
        return asked

    def _read(self, behind: int, evaluate: Evaluate | None) -> None:
        """Read and log the steps that were begun, all but the last ``behind``."""
        while len(self._begun) > behind:
            self._log_step(self._begun.popleft(), evaluate)

    def _log_step(self, begun: Begun, evaluate: Evaluate | None) -> None:
        """Wait for a step's numbers and log them."""
        since, dropped, step = max(begun.started, self._last_read), self._dropped(), begun.step
        known = begun.result.known(lambda: time.perf_counter() - since)
        self._last_read = time.perf_counter()
        metrics = {**known, **begun.also, "step_s": self._last_read - since}
        if "tokens" in metrics:
            metrics["tokens_per_s"] = metrics["tokens"] / metrics["step_s"]
        if len(self._ramp.sizes) > 1:
            metrics["batch_size"] = begun.samples
        if self._dropped():
            metrics["dropped_steps"] = self._dropped()
        metrics["memory_gib"] = memory_gib(self._mesh.device)
        told = self._first_step.look()
        paces, slow = self._pace.look(step, self._log.is_writer)
        metrics |= paces
        every = self._train.evaluate_every
        is_last = step >= self._train.steps
        if evaluate and every and (is_last or step % every == 0):
            self._heartbeat.enter("evaluate")
            found = evaluate()
            self._watch_best(step, found)
            metrics |= found
        show = step == 1 or is_last or step % self._train.log_every == 0
        self._log.metrics(step, metrics, show)
        for text in (*told, *slow):
            self._log.say(f"step {step}: {text}")
        if self._dropped() > dropped:
            self._log.say(
                f"step {step}: its gradients were not finite: the parameters stay as they were "
                f"({self._dropped()} of the run's updates were dropped)"
            )
        self._look_for_spikes(begun, metrics)

    def _watch_best(self, step: int, found: Mapping[str, float]) -> None:
        """See whether an evaluation is the best one. Comm: a number from the first process."""
        if self._best.metric:
            mesh = self._mesh
            own = self._best.of(found) if mesh.world.rank == 0 else 0.0
            self._is_best = self._best.see(step, sum_count(own, mesh.world, mesh.device))

    def _look_for_spikes(self, begun: Begun, metrics: Mapping[str, float]) -> None:
        step = begun.step
        found = self._spikes.see(step, metrics, begun.samples)
        self._wants_back = bool(found) and self._train.spikes.policy == "rollback"
        for spike in found:
            self._log.say(str(spike))
        if found and self._train.spikes.policy == "skip":
            self._count_dropped(step)

    def _count_dropped(self, step: int) -> None:
        """Say that a spike's step was dropped.

        Raises:
            MegaliteError: as many were as may be.
        """
        limit = self._train.spikes.limit
        self._spikes_dropped += 1
        if self._spikes_dropped > limit:
            raise MegaliteError(
                f"step {step}: a spike, and {limit} steps were dropped for one, the most that "
                "train.spikes.limit allows: lower --optimizer.learning_rate, look at the data "
                "near this step, or raise the limit"
            )
        count = f"{self._spikes_dropped} of at most {limit}"
        self._log.say(f"step {step}: its update is dropped: the parameters stay ({count})")

    def _look_for_drift(self, is_saved: bool) -> None:
        """Compare copies where that is due: a checkpoint has one of each, which must be right."""
        every = self._train.drift.every
        if every and (is_saved or self._is_turn(every)):
            self._heartbeat.enter("compare")
            self._drift.check(self.progress.step, self._log.say)

    def _go_back(self) -> bool:
        """Go back to a checkpoint from before a spike; whether there is one.

        Comm: broadcasts of what the first process decides and finds.

        Raises:
            MegaliteError: it went back as often as it may.
        """
        step, limit = self.progress.step, self._train.spikes.limit
        self._collect()
        choices = self._spikes.around(self.progress)
        said = decide_rollback(self._checkpoints, self._log.folder, self.progress, choices, limit)
        if not said:
            self._log.say(f"step {step}: no checkpoint is from before the spike: going on")
            return False
        self._log.say(f"step {step}: going back before the spike; {said}")
        self.resume()
        return True

    def _dropped(self) -> int:
        """Updates of all learners so far that were dropped for gradients that are not finite."""
        return sum(learner.scale.dropped_steps for learner in self._learners)

    def _is_done(self) -> bool:
        return self.progress.step >= self._train.steps or self._best.is_over

    def _is_turn(self, every: int) -> bool:
        """Whether something is due that happens every so many steps; 0: never."""
        return every > 0 and self.progress.step % every == 0

    def _finish(self) -> None:
        """Wait until everything is on the disk."""
        self._heartbeat.enter("save")
        self._checkpoints.wait()
        self._local.end()
        self._log.close()
