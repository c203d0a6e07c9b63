"""Real runs of a tiny model in this process: samples by number, a loader, a trainer, a folder."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from megalite.data.loader import Loader, Share
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.distributed.stop import StopRequest
from megalite.engine.build import build_model
from megalite.engine.model import Task
from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.ops import RowIntervals
from megalite.training.checkpoint.manager import CheckpointManager, Saving
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from megalite.training.metrics.run_log import RunLog
from megalite.training.progress import Progress, StepResult
from megalite.training.trainer import Trainer

SAMPLES, LENGTH, BATCH = 1000, 8, 4
MODEL = ModelConfig(
    vocab_size=32, hidden_size=16, num_layers=2, num_heads=2, ffn_size=16, dropout=0.1
)


class Texts:
    """Numbers that go up by one or two; those at bad places of the order are noise."""

    def __init__(self, bad: range = range(0)) -> None:
        self.bad = bad

    def batch(self, places: list[int]) -> Batch:
        rows = []
        for place in places:
            generator = torch.Generator().manual_seed(place)
            ups = torch.randint(1, 3, (LENGTH + 1,), generator=generator)
            noise = torch.randint(0, 32, (LENGTH + 1,), generator=generator)
            rows.append(noise if place in self.bad else ups.cumsum(0) % 32)
        tokens = torch.stack(rows)
        position = torch.arange(LENGTH, dtype=torch.int32).expand(len(places), LENGTH)
        mask = RowIntervals(torch.zeros_like(position), position + 1, LENGTH)
        stream = Stream(tokens[:, :-1].contiguous(), position.contiguous(), mask)
        return Batch(stream, tokens[:, 1:].contiguous(), torch.tensor(places))


class Run:
    """A run in a folder; each call of :meth:`go` is a start of it.

    Attributes:
        learner: of the last start.
        said: lines of all starts.
        seen: places in the run's order that each step of the last start had.
    """

    def __init__(
        self,
        folder: Path,
        texts: Texts | None = None,
        every: int = 10,
        launch: Launch | None = None,
        asynchronous: bool = True,
        **layout: int,
    ) -> None:
        self.folder, self._texts, self._every = folder, texts or Texts(), every
        self._asynchronous = asynchronous
        self._parallel = ParallelConfig(**layout)
        self._mesh = build_mesh(launch, self._parallel, "cpu") if launch else Mesh.single()
        self.seen: list[list[int]] = []
        self.stop, self.keep, self.best = StopRequest(), 9, ""
        self.evaluate: Callable[[], dict[str, float]] | None = None
        self.learner: Learner

    def trainer(self, train: TrainConfig) -> Trainer:
        mesh, rate = self._mesh, OptimizerConfig(learning_rate=1e-2)
        model = build_model(MODEL, mesh, self._parallel, seed=1)
        self.learner = Learner(model, mesh, Learning(train, rate, ScheduleConfig(), 1))
        log = RunLog(self.folder, mesh.world.rank == 0, train.steps)
        checkpoints = CheckpointManager(
            self.folder / "checkpoints",
            keep=self.keep,
            asynchronous=self._asynchronous,
            say=log.say,
            saving=Saving(write_before=log.write_lines),
        )
        trainer = Trainer([self.learner], log, checkpoints, self._every, stop=self.stop)
        trainer.keep_best(self.best)
        return trainer

    def go(
        self, steps: int, on_step: Callable[[int, Learner], None] | None = None, **more
    ) -> "Run":
        """Train up to a step; ``on_step`` gets each step's number before it."""
        train = TrainConfig(**{"global_batch_size": BATCH, "log_every": 1, "steps": steps} | more)
        trainer, self.seen = self.trainer(train), []

        def work(batches: list[Batch], progress: Progress) -> StepResult:
            self.seen.append([place for batch in batches for place in batch.sample_ids.tolist()])
            if on_step is not None:
                on_step(progress.step + 1, self.learner)
            count = sum(batch.num_targets for batch in batches)
            items = [(batch, None) for batch in batches]
            consumed = progress.consumed_samples
            step = self.learner.step(items, lambda scale: Task(Loss(scale)), count, consumed)
            return StepResult(step)

        def items(progress: Progress) -> Loader:
            batch, dp = train.global_batch_size, self._mesh.dp
            share = Share(batch, 1, dp.rank, dp.size, train.ramp)
            make = lambda _samples, places: self._texts.batch(list(places))  # noqa: E731
            consumed, skipped = progress.consumed_samples, progress.skipped
            options = {"seed": 0, "consumed_samples": consumed, "skipped": skipped}
            return Loader(range(SAMPLES), make, share, **options)

        trainer.resume()
        trainer.fit(items, work, self.evaluate)
        return self

    @property
    def rows(self) -> list[dict[str, float]]:
        """The metrics of each step, but for what the clock and the system say."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        kept = ("step", "loss", "grad_norm", "learning_rate", "batch_size")
        return [{key: row[key] for key in kept if key in row} for row in map(json.loads, lines)]

    @property
    def log(self) -> str:
        """What the run said."""
        return (self.folder / "log.txt").read_text()

    def manifest(self, step: int) -> dict:
        """The facts of a checkpoint."""
        path = self.folder / f"checkpoints/step-{step:08}/manifest.json"
        return json.loads(path.read_text())["facts"]
