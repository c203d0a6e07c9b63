"""``megalite plan``: what a pretraining run would need, before anything starts.

The layout is checked against model and batch, and the memory of each pipeline stage against the
device.
"""

from typing import Literal

from pydantic import Field

from megalite.distributed.launch import Launch
from megalite.engine.layout import Demand, check_layout
from megalite.errors import ConfigError
from megalite.plan.advice import changes, devices
from megalite.plan.memory import HEADROOM, ProcessMemory, Work, estimate, most
from megalite.stages.device import precision_of_gpu
from megalite.stages.pretrain import PretrainConfig
from megalite.stages.start import as_stored

DEVICE_GIB = {  # what nvidia-smi shows, less what the driver keeps
    "a100-80gb": 79.0,
    "a100-40gb": 39.4,
    "h100-80gb": 79.0,
    "v100-32gb": 31.7,
    "v100-16gb": 15.7,
}


class PlanConfig(PretrainConfig):
    """A pretraining run and the device that it is planned for."""

    gpu: Literal["a100-80gb", "a100-40gb", "h100-80gb", "v100-32gb", "v100-16gb"] = Field(
        "a100-80gb",
        description="device of each process and its memory: a100-80gb, a100-40gb, h100-80gb, "
        "v100-32gb or v100-16gb",
    )


def run(config: PlanConfig, launch: Launch) -> int:
    """Print the layout and a line per pipeline stage.

    Raises:
        ConfigError: the layout doesn't fit model or batch, the device has no such number format, or
            its memory doesn't suffice.
    """
    if config.checkpoint.start:
        model, said = as_stored(config.model, config.checkpoint.start, "lm")
        config = config.model_copy(update={"model": model})
        if said and launch.rank == 0:
            print(said)  # noqa: T201
    has_bf16 = not config.gpu.startswith("v100")
    precision = precision_of_gpu(config.train.precision, has_bf16, config.gpu)
    train = config.train.model_copy(update={"precision": precision})
    config = config.model_copy(update={"train": train})
    stages = plan(config)
    if launch.rank == 0:
        print("\n".join(table(config, stages)), flush=True)  # noqa: T201
    check_memory(config, stages)
    return 0


def work_of(config: PretrainConfig) -> Work:
    """What a pretraining run trains."""
    data = config.data
    encoder = data.encoder_rows if config.model.is_encoder_decoder else 0
    return Work(config.model, config.train, data.sequence_length, encoder)


def plan(config: PretrainConfig) -> list[ProcessMemory]:
    """Check a layout and estimate the memory of each pipeline stage.

    Raises:
        ConfigError: the layout doesn't fit the model or the batch.
    """
    demand = Demand(config.model, devices(config.parallel), config.train.batch_sizes())
    check_layout(demand, config.parallel)
    return estimate(work_of(config), config.parallel)


def table(config: PlanConfig, stages: list[ProcessMemory]) -> list[str]:
    """What is printed."""
    parallel, train = config.parallel, config.train
    copies = max(parallel.replicate, 1)
    tokens = train.global_batch_size * config.data.sequence_length
    lines = [
        f"{devices(parallel)} processes: pp {parallel.pp} x replicate {copies} x shard "
        f"{parallel.shard} x tp {parallel.tp}; {train.precision}, recompute {parallel.recompute}",
        f"{sum(stage.parameters for stage in stages):,} parameters over the stages; "
        f"{tokens:,} tokens per step; {train.steps * tokens:,} in {train.steps:,} steps",
        f"{'stage':>5} {'blocks':>7} {'parameters':>16} {'states':>8} {'gradients':>10} "
        f"{'gathered':>9} {'activations':>12} {'working':>8} {'rest':>6} {'total':>7}"
        "  GiB per process",
    ]
    for number, stage in enumerate(stages):
        lines.append(
            f"{number:>5} {stage.blocks:>7} {stage.parameters:>16,} {stage.states:>8.1f} "
            f"{stage.gradients:>10.1f} {stage.gathered:>9.1f} {stage.activations:>12.1f} "
            f"{stage.working:>8.1f} {stage.rest:>6.1f} {stage.total:>7.1f}"
        )
    limit = HEADROOM * DEVICE_GIB[config.gpu]
    return [
        *lines,
        f"{config.gpu}: {DEVICE_GIB[config.gpu]} GiB, of which a plan fills at most {limit:.1f}",
    ]


def check_memory(config: PlanConfig, stages: list[ProcessMemory]) -> None:
    """Refuse what the device can't hold.

    Raises:
        ConfigError: names the stage that is too large and what to change.
    """
    fullest, limit = most(stages), HEADROOM * DEVICE_GIB[config.gpu]
    if fullest.total <= limit:
        return
    found = changes(work_of(config), config.parallel, limit)
    fits = [change for change in found if change.total <= limit]
    offers = "; or ".join(f"{one.words} ({one.total:.1f} GiB)" for one in fits or found)
    if fits:
        advice = f"what fits: {offers}"
    else:
        advice = (
            f"no single change fits; what saves most: {offers}" if found else "use more devices"
        )
    raise ConfigError(
        f"--gpu {config.gpu}: stage {stages.index(fullest)} needs about {fullest.total:.1f} GiB; "
        f"{HEADROOM:.0%} of its {DEVICE_GIB[config.gpu]} GiB are {limit:.1f}: {advice}"
    )
