"""Training steps on made-up tokens, in the layout of a config, timed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.collectives import Traffic, bare_seconds
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, build_mesh
from megalite.engine.build import build_model
from megalite.engine.layout import Demand, check_layout
from megalite.engine.model import Task
from megalite.engine.recompute import recomputed_blocks
from megalite.models.batch import Batch, Stream
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.ops.mask import causal, full
from megalite.stages.device import choose_device, choose_precision
from megalite.stages.pretrain import PretrainConfig
from megalite.training.learner import Learner, Learning
from megalite.training.metrics.device import memory_gib, peak_tflops
from megalite.training.metrics.speed import Speed


def batch_of(config: ModelConfig, size: int, length: int, first: int = 0) -> Batch:
    """Rows ``first`` and on of tokens, each with a target; an encoder's stream is as long."""
    generator = torch.Generator().manual_seed(first)
    tokens = torch.randint(0, config.vocab_size, (size, length + 1), generator=generator)
    positions = torch.arange(length, dtype=torch.int32).expand(size, length)
    encoder = cross = None
    if config.is_encoder_decoder:
        source = torch.randint(0, config.vocab_size, (size, length), generator=generator)
        cross = full(size, length, length)
        encoder = Stream(source, positions, cross)
    ids = torch.arange(first, first + size)
    decoder = Stream(tokens[:, :-1], positions, causal(size, length))
    return Batch(decoder, tokens[:, 1:], ids, encoder=encoder, cross=cross)


@dataclass(frozen=True)
class Workload:
    """A learner and the micro-batches that it learns from again and again.

    Attributes:
        mesh: of the run.
        step: does one optimizer step; gives its metrics.
        batches: this data-parallel rank's micro-batches.
        speed: counts their tokens and operations.
    """

    mesh: Mesh
    step: Callable[[], dict[str, float]]
    batches: list[Batch]
    speed: Speed

    def timed(self) -> tuple[float, dict[str, float]]:
        """One step: its seconds and metrics. Comm: a barrier first, and a step's."""
        if self.mesh.world.group is not None:
            dist.barrier()
        started = time.perf_counter()
        metrics = self.step()
        return time.perf_counter() - started, metrics

    def transport(self) -> tuple[float, dict[str, Any]]:
        """Seconds that a step's collectives take alone, and what they are. Comm: a step's."""
        if self.mesh.world.size == 1:
            return 0.0, {}
        with Traffic() as traffic:
            self.step()
        return bare_seconds(traffic.calls), traffic.summary()

    def peak_gib(self) -> float:
        """The most memory of any process. Comm: all-reduce of a maximum over the world."""
        most = torch.tensor(memory_gib(self.mesh.device), device=self.mesh.device)
        if self.mesh.world.group is not None:
            dist.all_reduce(most, dist.ReduceOp.MAX, group=self.mesh.world.group)
        return float(most)


def make_workload(config: PretrainConfig, launch: Launch) -> Workload:
    """Build the model of a pretraining config in its layout; its data is not read.

    Raises:
        ConfigError: the layout doesn't fit.
    """
    train, parallel = config.train, config.parallel
    device = choose_device(config.run, launch)
    check_layout(Demand(config.model, launch.world_size, train.batch_sizes()), parallel)
    mesh = build_mesh(launch, parallel, device)
    seed, precision = config.run.seed, choose_precision(train.precision, device)
    train = train.model_copy(update={"precision": precision})
    model = build_model(config.model, mesh, parallel, seed=seed, precision=precision)
    learner = Learner(model, mesh, Learning(train, config.optimizer, config.schedule, seed))
    own, size = train.global_batch_size // mesh.dp.size, train.micro_batch_size
    first, length = mesh.dp.rank * own, config.data.sequence_length
    batches = [batch_of(config.model, size, length, at) for at in range(first, first + own, size)]
    items = [(batch, None) for batch in batches]
    count = sum(batch.num_targets for batch in batches)

    def step() -> dict[str, float]:
        return learner.step(items, lambda scale: Task(Loss(scale)), count, 0)

    peak = peak_tflops(device, precision)
    speed = Speed(config.model, mesh, peak, recomputed_blocks(config.model, parallel))
    return Workload(mesh, step, batches, speed)
