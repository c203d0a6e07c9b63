"""``megalite plan``: what a pretraining run needs, how long it takes, and which layout is best.

The layout is checked against model and batch, the memory of each pipeline stage against the device,
and a step is timed by the constants of the device's type.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from megalite.config import dump, load
from megalite.distributed.launch import Launch
from megalite.engine.layout import Demand, check_layout
from megalite.errors import ConfigError, naming
from megalite.models.hub import pinned
from megalite.plan.advice import changes, devices
from megalite.plan.budget import answers
from megalite.plan.calibrate import calibrated, read_calibration, write_calibration
from megalite.plan.constants import Constants, constants_of, stored
from megalite.plan.devices import CPU, DEVICES, NETWORKS, Cluster, Device
from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.memory import HEADROOM, ProcessMemory, Work, most
from megalite.plan.outlook import Terms, lines, outlook
from megalite.plan.search import Found, Search, table
from megalite.plan.stages import StageName, stage_memory, stage_seconds
from megalite.stages.device import precision_of_gpu
from megalite.stages.length import in_steps
from megalite.stages.pretrain import PretrainConfig
from megalite.stages.start import as_stored

_MEASURED = ("model", "train", "data", "parallel")
Gpu = Literal[
    "a100-80gb",
    "a100-40gb",
    "a800-80gb",
    "h100-80gb",
    "h200-141gb",
    "v100-32gb",
    "v100-16gb",
    "v100-32gb-pcie",
    "v100-16gb-pcie",
    "cpu",
]


class PlanConfig(PretrainConfig):
    """A pretraining run, the devices that it is planned for, and what is asked of the plan."""

    gpu: Gpu = Field(
        "a100-80gb",
        description="device of each process: a100-80gb, a100-40gb, a800-80gb, h100-80gb, "
        "h200-141gb, v100-32gb, v100-16gb; in PCIe slots v100-32gb-pcie, v100-16gb-pcie; or cpu, "
        "which needs a calibration",
    )
    network: Literal[
        "ib-100",
        "ib-200",
        "ib-400",
        "ib-800",
        "roce-100",
        "roce-200",
        "roce-400",
        "efa-100",
        "omni-path-100",
    ] = Field(
        "ib-200",
        description="network between nodes by Gbit/s of an adapter: InfiniBand (ib-100, ib-200, "
        "ib-400, ib-800), Ethernet (roce-100, roce-200, roce-400), AWS (efa-100) or omni-path-100",
    )
    per_node: int = Field(8, ge=1, description="devices of a node")
    adapters: int = Field(8, ge=1, description="adapters of a node's network")
    price_per_gpu_hour: float = Field(
        0.0, ge=0, description="price of a device, an hour, for the cost; 0: not asked"
    )
    power: float = Field(
        0.0, ge=0, description="watts of a device with its share of node and cooling; 0: not asked"
    )
    failures: float = Field(
        6.5, ge=0, description="failures that stop a run, of a thousand nodes a day"
    )
    save_s: float = Field(60.0, gt=0, description="seconds that a checkpoint stops training for")
    of_stage: StageName = Field(
        "pretrain",
        description="stage that is planned for the model: pretrain, sft, rm, or ppo with its four "
        "models on the same processes, whose sequences are a prompt and its answer",
    )
    search: bool = Field(
        False, description="whether the fastest layouts that fit are searched and the best written"
    )
    output: str = Field("plan.toml", description="file that the best layout is written to")
    gpus: int = Field(0, ge=0, description="devices to search; 0: as many as the layout has")
    days: float = Field(
        0.0,
        ge=0,
        description="days in which the run must end: the fewest devices are searched; 0: not asked",
    )
    calibration: str = Field(
        "", description="file of constants that calibrate wrote; empty: those of the package"
    )
    calibrate: str = Field(
        "", description="run whose measured steps set the constants; they are written to output"
    )


def run(config: PlanConfig, launch: Launch) -> int:
    """Print the layout, a line per pipeline stage and what the run takes; or search, or calibrate.

    Raises:
        ConfigError: the layout doesn't fit model or batch, the device has no such number format, or
            its memory doesn't suffice.
    """
    if launch.rank:
        return 0
    if config.checkpoint.start:
        start, fetched = pinned(Launch(), "checkpoint.start", config.checkpoint.start, "config")
        model, said = as_stored(config.model, start, "lm", grows=config.checkpoint.grow_vocabulary)
        config = config.model_copy(update={"model": model})
        _print(list(filter(None, (fetched, said))))
    if config.train.epochs:
        raise ConfigError("--train.epochs: a plan reads no data: give train.tokens or train.steps")
    config, length = in_steps(config, 0, config.data.sequence_length)
    _print(length)
    if config.calibrate:
        return _calibrate(config)
    config = _in_precision(config)
    if config.search or config.gpus or config.days:
        return _search(config)
    stages = plan(config)
    _print(table_of_stages(config, stages))
    check_memory(config, stages)
    if not config.calibration and device_of(config).kind not in stored():
        _print([f"no time is told: {_no_constants(config)}"])
        return 0
    _print(outlook_lines(config, Job(work_of(config), config.parallel)))
    return 0


def _print(shown: list[str]) -> None:
    for text in shown:
        print(text, flush=True)  # noqa: T201


def _in_precision(config: PlanConfig) -> PlanConfig:
    if config.gpu == "cpu":
        precision = "fp32" if config.train.precision == "auto" else config.train.precision
    else:
        has_bf16 = DEVICES[config.gpu].has_bf16
        precision = precision_of_gpu(config.train.precision, has_bf16, config.gpu)
    train = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": train})


def device_of(config: PlanConfig) -> Device:
    """The device that is planned for."""
    return CPU if config.gpu == "cpu" else DEVICES[config.gpu]


def cluster_of(config: PlanConfig) -> Cluster:
    """The nodes that are planned for."""
    network = NETWORKS[config.network]
    return Cluster(device_of(config), network, config.per_node, config.adapters)


def constants_for(config: PlanConfig) -> Constants:
    """The constants of the device's type, or of the calibration that is given.

    Raises:
        ConfigError: the device has none.
    """
    kind = device_of(config).kind
    if config.calibration:
        return read_calibration(Path(config.calibration), kind)
    if kind not in stored():
        raise ConfigError(_no_constants(config))
    return constants_of(kind)


def _no_constants(config: PlanConfig) -> str:
    return (
        f"--gpu {config.gpu}: has no constants of its own: measure a run on it and give "
        "--calibrate RUN, then --calibration with the file that it writes"
    )


def work_of(config: PretrainConfig) -> Work:
    """What a pretraining run trains."""
    data = config.data
    encoder = data.encoder_rows if config.model.is_encoder_decoder else 0
    return Work(config.model, config.train, data.sequence_length, encoder, config.optimizer)


def plan(config: PretrainConfig) -> list[ProcessMemory]:
    """Check a layout and estimate the memory of each pipeline stage.

    Raises:
        ConfigError: the layout doesn't fit the model or the batch.
    """
    demand = Demand(config.model, devices(config.parallel), config.train.batch_sizes())
    check_layout(demand, config.parallel)
    stage: StageName = getattr(config, "of_stage", "pretrain")
    return stage_memory(stage, work_of(config), config.parallel)


def terms_of(config: PlanConfig) -> Terms:
    """What the run pays and meets."""
    return Terms(
        config.price_per_gpu_hour, config.power, config.failures, config.save_s, config.per_node
    )


def outlook_lines(config: PlanConfig, job: Job) -> list[str]:
    """What the run takes: seconds, days, money, energy, failures."""
    cluster, constants, terms = cluster_of(config), constants_for(config), terms_of(config)
    kernels = Kernels(cluster.device, constants, job.work.width == 2)
    seconds = stage_seconds(config.of_stage, job, cluster, constants)
    return lines(outlook(job, seconds, kernels, terms), job, terms)


def _search(config: PlanConfig) -> int:
    """Print the ten fastest layouts that fit and write the best.

    Raises:
        ConfigError: nothing fits; it says what would.
    """
    constants, cluster = constants_for(config), cluster_of(config)
    search = Search(work_of(config), config.parallel, cluster, constants, config.of_stage)
    count = config.gpus or devices(config.parallel)
    if config.days:
        _print(answers(search, count, config.days))
        return 0
    found = search.best(count)
    if not found:
        raise ConfigError(_nothing_fits(config, search, count))
    _print([f"{count} devices, {config.gpu}, {config.network}:", *table(found)])
    _print(outlook_lines(config, found[0].job))
    _write(config, found[0])
    return 0


def _nothing_fits(config: PlanConfig, search: Search, count: int) -> str:
    if next(search.jobs(count), None) is None:
        return (
            f"--search: no layout of {count} devices fits {config.model.num_heads} heads, "
            f"{config.model.num_layers} blocks and --train.global_batch_size "
            f"{config.train.global_batch_size}: use a number of devices that divides them"
        )
    where = f"--search: no layout of {count} devices ({config.gpu}) fits model, batch and memory"
    more = search.least_devices(2 * count, doublings=4)
    if more is None:
        return f"{where}, nor one of up to {32 * count}: use a larger device or a smaller model"
    parallel, train = more[1].job.parallel, more[1].job.work.train
    return (
        f"{where}: {more[0]} would do, with tp {parallel.tp}, pp {parallel.pp}, shard "
        f"{parallel.shard}, recompute {parallel.recompute} and micro_batch_size "
        f"{train.micro_batch_size}"
    )


def _write(config: PlanConfig, found: Found) -> None:
    """Write the run with the best layout, as ``megalite pretrain`` takes it."""
    job = found.job
    values: dict[str, Any] = {name: getattr(config, name) for name in PretrainConfig.model_fields}
    values |= {"parallel": job.parallel, "train": job.work.train}
    path = Path(config.output)
    with naming(path):
        path.write_text(dump(PretrainConfig(**values)), encoding="utf-8")
    _print([f"the first is written to {path}: megalite pretrain {path}"])


def _calibrate(config: PlanConfig) -> int:
    """Set the constants by a run's measured steps and write them.

    Raises:
        ConfigError: the run's folder lacks what is needed.
    """
    device = device_of(config)
    start = constants_of(device.kind) if device.kind in stored() else Constants()
    folder = Path(config.calibrate)
    measured = load(PretrainConfig, folder / "config.toml", [])
    if measured.train.precision == "auto":
        measured = _in_precision(
            config.model_copy(update={name: getattr(measured, name) for name in _MEASURED})
        )
    found = calibrated(folder, work_of(measured), measured.parallel, cluster_of(config), start)
    path = Path(config.output).with_suffix(".json")
    write_calibration(path, device.kind, found.constants, found.steps)
    _print(
        [
            f"{found.steps} steps of {config.calibrate}: {found.measured:.4g} s, "
            f"predicted {found.predicted:.4g} s before and {found.after:.4g} s after",
            f"written to {path}: megalite plan ... --calibration {path}",
        ]
    )
    return 0


def table_of_stages(config: PlanConfig, stages: list[ProcessMemory]) -> list[str]:
    """What is printed of memory."""
    parallel, train, device = config.parallel, config.train, device_of(config)
    copies = max(parallel.replicate, 1)
    tokens = train.global_batch_size * config.data.sequence_length
    seen = train.ramp.after(train.steps) * config.data.sequence_length
    lines = [
        f"{devices(parallel)} processes: pp {parallel.pp} x replicate {copies} x shard "
        f"{parallel.shard} x tp {parallel.tp}; {train.precision}, recompute {parallel.recompute}",
        f"{sum(stage.parameters for stage in stages):,} parameters over the stages; "
        f"{tokens:,} tokens per step; {seen:,} in {train.steps:,} steps",
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
    limit = HEADROOM * device.memory_gib
    shown = f"{config.gpu}: {device.memory_gib} GiB, of which a plan fills at most {limit:.1f}"
    return [*lines, shown]


def check_memory(config: PlanConfig, stages: list[ProcessMemory]) -> None:
    """Refuse what the device can't hold.

    Raises:
        ConfigError: names the stage that is too large and what to change.
    """
    memory = device_of(config).memory_gib
    fullest, limit = most(stages), HEADROOM * memory
    if fullest.total <= limit:
        return
    found = changes(work_of(config), config.parallel, limit, config.of_stage)
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
        f"{HEADROOM:.0%} of its {memory} GiB are {limit:.1f}: {advice}"
    )
