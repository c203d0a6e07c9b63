"""What every stage sets up alike: device, mesh, model, log, checkpoints, trainer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from megalite.config import dump
from megalite.config.section import Section
from megalite.data.config import TokenizerConfig
from megalite.data.loader import Dataset, Loader, Share
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_meshes
from megalite.engine.build import build_model
from megalite.engine.layout import Demand, check_layout
from megalite.engine.model import Model
from megalite.engine.recompute import recomputed_blocks
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.device import Precision, check_heads, choose_device, choose_precision
from megalite.stages.start import load_start, origin_of
from megalite.training.checkpoint.manager import CheckpointManager, Saving
from megalite.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from megalite.training.faults import Fault, FaultConfig
from megalite.training.learner import Learner, Learning
from megalite.training.metrics.device import peak_tflops
from megalite.training.metrics.run_log import RunLog
from megalite.training.metrics.speed import Speed
from megalite.training.progress import Progress
from megalite.training.trainer import Trainer
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.timeouts import SLOW_FACTOR, Timeouts
from megalite.training.watchdog.watchdog import Watchdog

STALL_SHARE = 0.75  # of a collective's timeout: a hung process is named before collectives give up

MakeBatch = Callable[[Sequence[Any], Sequence[int]], Any]


class StageConfig(Section):
    """The sections that every stage has."""

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultConfig = FaultConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()

    def check_inputs(self) -> None:
        """Refuse at the start what a stage would otherwise meet late, such as too long rows.

        Raises:
            UserError: it says what is wrong.
        """


@dataclass(frozen=True)
class SeparateMesh:
    """A mesh of their own for the last processes of a run.

    Attributes:
        processes: how many.
        parallel: their layout.
    """

    processes: int
    parallel: ParallelConfig


@dataclass(frozen=True)
class Stage:
    """A stage that is set up.

    Attributes:
        config: of the run; its number format is chosen.
        mesh: the processes that this one shares its models with.
        log: of the run's folder.
        speed: measures steps.
        heartbeat: is told what this process is doing.
        watchdog: watches over the processes in its ``with`` block.
    """

    config: StageConfig
    mesh: Mesh
    log: RunLog
    speed: Speed
    heartbeat: Heartbeat
    watchdog: Watchdog

    def say(self, *notes: Sequence[str]) -> None:
        """Say what was found in the data, on the console and in log.txt."""
        for group in notes:
            for note in group:
                self.log.say(note)

    def model(self, config: ModelConfig, start: str = "", needs_head: bool = False) -> Model:
        """A model, its weights from ``start`` (a checkpoint or a Hugging Face folder) if given.

        A reward model starts from a language model: its scalar head is new then, unless
        ``needs_head``.
        """
        settings = self.config
        device, seed = self.mesh.device, settings.run.seed
        precision = choose_precision(settings.train.precision, device)
        check_heads(config, device)
        model = build_model(config, self.mesh, settings.parallel, seed=seed, precision=precision)
        if start:
            load_start(model, start, needs_head)
        return model

    def trainer(self, *models: tuple[str, Model]) -> tuple[Trainer, list[Learner]]:
        """A trainer of these named models, and what each of them learns with."""
        config = self.config
        learning = Learning(config.train, config.optimizer, config.schedule, config.run.seed)
        learners = [
            Learner(model, self.mesh, learning, name, self.heartbeat) for name, model in models
        ]
        checkpoints = CheckpointManager(
            self.log.folder / "checkpoints",
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            say=self.log.say,
            saving=Saving(self.heartbeat, SLOW_FACTOR * self.mesh.timeout, self.mesh.ranks()),
        )
        every, origin = config.checkpoint.every, origin_of(config.checkpoint.start)
        return Trainer(learners, self.log, checkpoints, every, origin), learners

    def loader(
        self, dataset: Dataset, make: MakeBatch, progress: Progress, seed: int | None = None
    ) -> Loader:
        """What reads this data-parallel rank's share of each step's samples.

        Args:
            dataset: samples by number.
            make: makes a micro-batch of samples and their numbers in the run's order.
            progress: the first step that is read is the one after it.
            seed: of the order; None: the run's.
        """
        train, dp = self.config.train, self.mesh.dp
        return Loader(
            dataset,
            make,
            Share(train.global_batch_size, train.micro_batch_size, dp.rank, dp.size),
            seed=self.config.run.seed if seed is None else seed,
            consumed_samples=progress.consumed_samples,
        )


def set_up(
    config: StageConfig,
    launch: Launch,
    updates: int = 1,
    separate: SeparateMesh | None = None,
) -> Stage:
    """Start the processes' mesh and open the run's folder.

    Args:
        config: of the run.
        launch: this process among the run's.
        updates: optimizer steps that share a step's samples (PPO's mini-batches).
        separate: the last processes' own mesh; None: all processes are in one.

    Returns:
        The stage of this process; one in the separate mesh has its layout in the config.

    Raises:
        ConfigError: the layout doesn't fit, there is no such device, or it can't compute this model
            in this number format.
    """
    device = choose_device(config.run, launch)
    own = launch.world_size - (separate.processes if separate else 0)
    demand = Demand(config.model, own, config.train.batch_sizes(updates))
    check_layout(demand, config.parallel)
    config.check_inputs()
    check_heads(config.model, device)
    config = _with_precision(config, choose_precision(config.train.precision, device))
    meshes = [(own, config.parallel)]
    if separate is not None:
        meshes.append((separate.processes, separate.parallel))
        if launch.rank >= own:
            config = config.model_copy(update={"parallel": separate.parallel})
    mesh = build_meshes(launch, meshes, device)
    log = RunLog(config.run.folder, launch.rank == 0, config.train.steps, config.run.tensorboard)
    log.write("config.toml", dump(config))
    peak = peak_tflops(device, config.train.precision)
    speed = Speed(config.model, mesh, peak, recomputed_blocks(config.model, config.parallel))
    heartbeat = Heartbeat(Fault(config.faults, launch))
    timeouts = Timeouts(STALL_SHARE * config.parallel.timeout_s)
    faults = log.folder / "faults" / f"restart-{launch.restart}"
    watchdog = Watchdog(launch, heartbeat, timeouts, faults)
    return Stage(config, mesh, log, speed, heartbeat, watchdog)


def _with_precision(config: StageConfig, precision: Precision) -> StageConfig:
    train = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": train})


def check_positions(model: ModelConfig, rows: int, key: str) -> None:
    """Refuse more rows than a learned table of positions has.

    Args:
        model: shape of the model.
        rows: of the longest stream.
        key: where they come from, and what else is in them.

    Raises:
        ConfigError: it names both numbers.
    """
    if model.position == "learned" and rows > model.max_positions:
        raise ConfigError(
            f"--{key}: needs {rows} positions, model.max_positions is {model.max_positions}: "
            "shorten it"
        )
