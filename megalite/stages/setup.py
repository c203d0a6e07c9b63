"""What every stage sets up alike: device, mesh, model, log, checkpoints, trainer."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from megalite.config import dump
from megalite.config.section import Section
from megalite.data.chat.turns import parse_prompt
from megalite.data.records import read_records
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_meshes
from megalite.engine.build import build_model
from megalite.engine.layout import Demand, check_layout
from megalite.engine.model import Model
from megalite.engine.recompute import recomputed_blocks
from megalite.engine.weights import load_weights
from megalite.errors import CheckpointError, ConfigError
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import is_hugging_face, read_their_config
from megalite.training.checkpoint import (
    CheckpointManager,
    Saving,
    find_checkpoint,
    load,
    read_manifest,
    verify,
)
from megalite.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from megalite.training.faults import Fault, FaultConfig
from megalite.training.flops import peak_tflops
from megalite.training.heartbeat import Heartbeat
from megalite.training.run_log import RunLog
from megalite.training.trainer import Learner, Learning, Speed, Trainer
from megalite.training.watchdog import LONGER, Watch, Watchdog


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


@dataclass(frozen=True)
class Stage:
    """A stage that is set up.

    Attributes:
        config: of the run.
        mesh: its processes.
        log: of the run's folder.
        speed: measures steps.
        heart: is told what this process is doing.
        watchdog: looks after the processes in its ``with`` block.
    """

    config: StageConfig
    mesh: Mesh
    log: RunLog
    speed: Speed
    heart: Heartbeat
    watchdog: Watchdog

    def model(self, config: ModelConfig, start: str = "", needs_head: bool = False) -> Model:
        """A model, its weights from ``start`` (a checkpoint or a Hugging Face folder) if given.

        A reward model starts from a language model: its scalar head is new then, unless
        ``needs_head``.
        """
        settings = self.config
        precision, seed = settings.train.precision, settings.run.seed
        model = build_model(config, self.mesh, settings.parallel, seed=seed, precision=precision)
        if start:
            load_start(model, start, needs_head)
        return model

    def trainer(self, *models: tuple[str, Model]) -> tuple[Trainer, list[Learner]]:
        """A trainer of these named models."""
        config = self.config
        learning = Learning(config.train, config.optimizer, config.schedule, config.run.seed)
        learners = [Learner(model, self.mesh, learning, name, self.heart) for name, model in models]
        checkpoints = CheckpointManager(
            self.log.folder / "checkpoints",
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            say=self.log.say,
            saving=Saving(self.heart, LONGER * self.mesh.timeout, self.mesh.ranks()),
        )
        every, origin = config.checkpoint.every, origin_of(config.checkpoint.start)
        return Trainer(learners, self.log, checkpoints, every, origin), learners


def set_up(
    config: StageConfig,
    launch: Launch,
    updates: int = 1,
    apart: tuple[int, ParallelConfig] | None = None,
) -> Stage:
    """Start the processes' mesh and open the run's folder.

    Args:
        config: of the run.
        launch: this process among the run's.
        updates: optimizer steps that share a step's samples (PPO's mini-batches).
        apart: how many processes, the last ones, have a mesh of their own, and its layout.

    Returns:
        The stage of this process; one that stands apart has its own layout in the config.

    Raises:
        ConfigError: the layout doesn't fit, or there is no such device.
    """
    device = choose_device(config.run, launch)
    train = config.train
    sizes = train.global_batch_size, train.micro_batch_size, updates
    own = launch.world_size - (apart[0] if apart else 0)
    check_layout(Demand(config.model, own, *sizes), config.parallel)
    check_inputs(config)
    sides = [(own, config.parallel), *([apart] if apart else [])]
    mesh = build_meshes(launch, sides, device)
    config = config.model_copy(update={"parallel": sides[launch.rank >= own][1]})
    log = RunLog(config.run.folder, launch.rank == 0, config.train.steps, config.run.tensorboard)
    log.write("config.toml", dump(config))
    peak = peak_tflops(device, config.train.precision)
    speed = Speed(config.model, mesh, peak, recomputed_blocks(config.model, config.parallel))
    heart = Heartbeat(Fault(config.faults, launch))
    folder = log.folder / "faults" / f"restart-{launch.restart}"
    watchdog = Watchdog(launch, heart, Watch(0.75 * config.parallel.timeout_s, folder))
    return Stage(config, mesh, log, speed, heart, watchdog)


def check_inputs(config: StageConfig) -> None:
    """Refuse at the start what would otherwise be met at the end: samples, and too many positions.

    Raises:
        ConfigError: a row is longer than the model's table of positions.
        DataError: the tokenizer or a file of prompts for samples is missing or malformed.
    """
    samples, data = getattr(config, "samples", None), getattr(config, "data", None)
    if samples is not None and samples.prompts:
        read_records(samples.prompts, parse_prompt)
        load_tokenizer(config.tokenizer.path)  # type: ignore[attr-defined]
    if data is not None:
        answer = getattr(getattr(config, "rollout", None), "max_new_tokens", 0)
        check_positions(config.model, data.sequence_length + answer, "data.sequence_length")


def check_positions(model: ModelConfig, rows: int, key: str) -> None:
    """Refuse more rows than a learned table of positions has.

    Raises:
        ConfigError: it names both numbers.
    """
    if model.position == "learned" and rows > model.max_positions:
        raise ConfigError(
            f"--{key}: needs {rows} positions with its answer, model.max_positions is "
            f"{model.max_positions}: shorten it"
        )


def choose_device(run: RunConfig, launch: Launch) -> torch.device:
    """This process's device; on a CPU, the number of threads too.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if run.device == "cuda" and not has_cuda:
        raise ConfigError("--run.device cuda: there is no CUDA device here: use cpu or auto")
    if has_cuda and run.device != "cpu":
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
        return device
    cores = os.cpu_count() or 1
    torch.set_num_threads(run.threads or max(cores // launch.local_world_size, 1))
    return torch.device("cpu")


def origin_of(start: str) -> dict[str, Any]:
    """What a run's checkpoints keep of its start: the published config that it came from."""
    if not start:
        return {}
    if is_hugging_face(Path(start)):
        return {"published": read_their_config(Path(start))}
    facts, _ = read_manifest(find_checkpoint(start))
    return {"published": facts["published"]} if "published" in facts else {}


def load_start(model: Model, start: str, needs_head: bool = False) -> None:
    """Load weights from a checkpoint of ours or a Hugging Face folder.

    Args:
        model: gets the weights.
        start: the folder.
        needs_head: refuse a checkpoint without this model's kind of head, instead of a new one.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another model.
    """
    if is_hugging_face(Path(start)):
        if needs_head and model.config.head == "value":
            raise CheckpointError(
                f"{start}: a language model has no trained value head; `megalite rm` makes one"
            )
        load_weights(model, Path(start))
        return
    path = find_checkpoint(start)
    facts = verify(path)
    name = "model" if "model" in facts["learners"] else "actor"
    tensors = {f"{name}.{n}": p.detach() for n, p in model.named_parameters()}
    was, now = facts["model"]["head"], model.config.head
    if was != now and needs_head:
        raise CheckpointError(f"{path}: has a {was} head; this model needs a trained {now} head")
    if was != now:
        if now != "value":
            raise CheckpointError(f"{path}: has a {was} head; this stage needs a {now} head")
        tensors = {n: p for n, p in tensors.items() if ".head." not in n}
    load(path, tensors)
    model.copy_duplicates()
