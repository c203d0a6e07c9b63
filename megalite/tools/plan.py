"""``megalite plan``: what a run needs, how long it takes, and which layout is best.

The layout is checked against model and batch, the memory of each pipeline stage against the device,
and a step is timed by the constants of the device's type.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from megalite.config import dump, load
from megalite.data.config import CorpusConfig
from megalite.distributed.launch import Launch
from megalite.engine.layout import Demand, check_layout
from megalite.errors import CheckpointError, ConfigError, naming
from megalite.models.config import ModelConfig
from megalite.models.hub import pinned
from megalite.plan.advice import changes, devices
from megalite.plan.budget import answers
from megalite.plan.calibrate import calibrated, read_calibration, write_calibration
from megalite.plan.constants import Constants, constants_of, stored
from megalite.plan.devices import CPU, DEVICES, NETWORKS, Cluster, Device
from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.memory import HEADROOM, ProcessMemory, most
from megalite.plan.outlook import Terms, lines, outlook
from megalite.plan.search import Found, Search, table
from megalite.plan.stages import (
    frozen_memory,
    stage_memory,
    stage_operations,
    stage_seconds,
)
from megalite.stages.device import precision_of_gpu
from megalite.stages.length import in_steps
from megalite.stages.planned import stage_of, work_of
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rlhf.placement import check_placement
from megalite.stages.setup import TITLE, StageConfig
from megalite.stages.start import as_stored
from megalite.tools.plan_config import (
    CONFIGS,
    AnyPlan,
    PlanConfig,
    PlanOptions,
    rows_of,
    stage_name,
)

_SHARED = ("model", "parallel", "train", "optimizer", "schedule", "checkpoint", "tokenizer")


def run(config: AnyPlan, launch: Launch) -> int:
    """Print the layout, a line per pipeline stage and what the run takes; or search, or calibrate.

    Raises:
        ConfigError: the layout doesn't fit model or batch, the device has no such number format, or
            its memory doesn't suffice.
    """
    if launch.rank:
        return 0
    output = Path(config.output)
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"--output {output}: there is no such folder: make it")
    if config.calibrate:
        return _calibrate(config)
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder: give a new file in it")
    config = _settled(config)
    if config.search or config.gpus or config.days:
        return _search(config)
    is_timed = bool(config.calibration) or device_of(config).kind in stored()
    if is_timed:
        constants_for(config)  # refused before anything is told
    stages = plan(config)
    _print(table_of_stages(config, stages))
    check_memory(config, stages)
    _check_frozen(config)
    if not is_timed:
        _print([f"no time is told: {_no_constants(config)}"])
        return 0
    _print(outlook_lines(config, job_of(config)))
    return 0


def _settled(config: AnyPlan) -> AnyPlan:
    """The config with its whole model, its length in steps and its precision; says what it took."""
    start = config.checkpoint.start
    if start:
        config = config.model_copy(update={"model": _model_of(config, start)})
    if config.train.epochs:
        raise ConfigError(
            f"--train.epochs {config.train.epochs:g}: a plan reads no data: give train.steps "
            "instead, and --train.epochs 0"
        )
    tokens = config.data.sequence_length if config.stage == "pretrain" else 0
    config, length = in_steps(config, 0, tokens)
    _print([*length, *_notes_of_shares(config)])
    return _in_precision(config)


def _notes_of_shares(config: AnyPlan) -> list[str]:
    """What a plan supposes of stores with objectives of their own."""
    data = config.data
    if not isinstance(data, CorpusConfig) or len(data.objective_names) == 1 or data.weights:
        return []
    return [
        "data.objectives without data.weights: a plan reads no data, so that the stores are taken "
        "to have equal shares; give data.weights for others"
    ]


def _model_of(config: AnyPlan, start: str) -> ModelConfig:
    """The model as a run's start has it, or as [model] says where that isn't there yet."""
    try:
        path, fetched = pinned(Launch(), "checkpoint.start", start, "config")
        grows = config.checkpoint.grow_vocabulary
        model, said = as_stored(config.model, path, "lm", grows=grows)
    except CheckpointError as error:
        sizes = "as [model] says" if config.model.model_fields_set else "of default sizes"
        _print([f"the model is {sizes}, as checkpoint.start isn't there: {error}"])
        return config.model
    _print(list(filter(None, (fetched, said))))
    return model


def _print(shown: list[str]) -> None:
    for text in shown:
        print(text, flush=True)  # noqa: T201


def _in_precision(config: AnyPlan) -> AnyPlan:
    if config.gpu == "cpu":
        precision = "fp32" if config.train.precision == "auto" else config.train.precision
    else:
        has_bf16 = DEVICES[config.gpu].has_bf16
        precision = precision_of_gpu(config.train.precision, has_bf16, config.gpu)
    train = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": train})


def device_of(config: AnyPlan) -> Device:
    """The device that is planned for."""
    return CPU if config.gpu == "cpu" else DEVICES[config.gpu]


def cluster_of(config: AnyPlan) -> Cluster:
    """The nodes that are planned for."""
    network = NETWORKS[config.network]
    return Cluster(device_of(config), network, config.per_node, config.adapters)


def constants_for(config: AnyPlan) -> Constants:
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


def _no_constants(config: AnyPlan) -> str:
    return (
        f"--gpu {config.gpu}: has no constants of its own: measure a run on it and give "
        "--calibrate RUN, then --calibration with the file that it writes"
    )


def job_of(config: AnyPlan) -> Job:
    """The run as a job."""
    return Job(work_of(config), config.parallel, seen=rows_of(config))


def _frozen(config: AnyPlan) -> int:
    """Processes of PPO's frozen models alone."""
    if isinstance(config, PPOConfig) and stage_name(config) == "ppo":
        return config.frozen.processes
    return 0


def plan(config: AnyPlan) -> list[ProcessMemory]:
    """Check a layout and estimate the memory of each pipeline stage.

    Raises:
        ConfigError: the layout doesn't fit the model or the batch.
    """
    demand = Demand(config.model, devices(config.parallel), config.batch_sizes())
    check_layout(demand, config.parallel)
    if _frozen(config):
        assert isinstance(config, PPOConfig)
        whole = replace(demand, world_size=demand.world_size + config.frozen.processes)
        check_placement(whole, config.parallel, config.frozen)
    return stage_memory(stage_of(config, stage_name(config)), work_of(config), config.parallel)


def terms_of(config: AnyPlan) -> Terms:
    """What the run pays and meets."""
    return Terms(
        config.price_per_gpu_hour,
        config.power,
        config.failures,
        config.save_s,
        config.per_node,
        _frozen(config),
    )


def outlook_lines(config: AnyPlan, job: Job) -> list[str]:
    """What the run takes: seconds, days, money, energy, failures."""
    cluster, constants, terms = cluster_of(config), constants_for(config), terms_of(config)
    kernels = Kernels(cluster.device, constants, job.work.width == 2)
    stage = stage_of(config, stage_name(config))
    seconds = stage_seconds(stage, job, cluster, constants)
    done = stage_operations(stage, job)
    return lines(outlook(stage.job(job), seconds, done, kernels, terms), stage.job(job), terms)


def _search(config: AnyPlan) -> int:
    """Print the ten fastest layouts that fit and write the best.

    Raises:
        ConfigError: nothing fits; it says what would.
    """
    constants, cluster = constants_for(config), cluster_of(config)
    _check_frozen(config)
    search = Search(
        work_of(config),
        config.parallel,
        cluster,
        constants,
        stage_of(config, stage_name(config)),
        rows_of(config),
    )
    count = config.gpus or devices(config.parallel)
    if config.days:
        _print(answers(search, count, config.days))
        return 0
    found = search.best(count)
    if not found:
        raise ConfigError(_nothing_fits(config, search, count))
    shown = table(found, stage_of(config, stage_name(config)))
    _print([f"{count} devices, {config.gpu}, {config.network}:", *shown])
    _print(outlook_lines(config, found[0].job))
    _write(config, found[0])
    return 0


def _nothing_fits(config: AnyPlan, search: Search, count: int) -> str:
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


def _write(config: AnyPlan, found: Found) -> None:
    """Write the run with the best layout, as its stage takes it."""
    job, name = found.job, stage_name(config)
    own: type[StageConfig] = CONFIGS[name]
    kept = own.model_fields if name == config.stage else _SHARED
    values: dict[str, Any] = {key: getattr(config, key) for key in kept}
    values |= {"parallel": job.parallel, "train": job.work.train}
    path = Path(config.output)
    with naming(path):
        path.write_text(dump(own(**values)), encoding="utf-8")
    _print([f"the first is written to {path}: megalite {name} {path}"])


def _stage_words(folder: Path) -> list[str]:
    """The stage of a run by the title of its config, which ``megalite`` wrote."""
    with naming(folder / "config.toml"):
        title = (folder / "config.toml").read_text(encoding="utf-8").partition("\n")[0]
    name = title.removeprefix(TITLE)
    return ["--of_stage", name] if name in CONFIGS else []


def _calibrate(config: AnyPlan) -> int:
    """Set the constants by a run's measured steps and write them.

    Raises:
        ConfigError: the run's folder lacks what is needed.
    """
    device = device_of(config)
    start = constants_of(device.kind) if device.kind in stored() else Constants()
    folder = Path(config.calibrate)
    options = {name: getattr(config, name) for name in PlanOptions.model_fields}
    measured: AnyPlan = load(PlanConfig, folder / "config.toml", _stage_words(folder))
    if stage_name(measured) not in ("pretrain", "sft"):
        raise ConfigError(
            f"--calibrate {folder}: is a run of {stage_name(measured)}, whose steps do several "
            "things: measure one of pretrain or sft"
        )
    measured = _in_precision(measured.model_copy(update=options))
    found = calibrated(folder, job_of(measured), cluster_of(config), start)
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


def table_of_stages(config: AnyPlan, stages: list[ProcessMemory]) -> list[str]:
    """What is printed of memory."""
    parallel, train, device = config.parallel, config.train, device_of(config)
    copies = max(parallel.replicate, 1)
    job = stage_of(config, stage_name(config)).job(job_of(config))
    tokens, seen = job.tokens, train.ramp.after(train.steps) * job.work.sequence_length
    lines = [
        f"{stage_name(config)} on {devices(parallel)} processes: pp {parallel.pp} x replicate "
        f"{copies} x shard {parallel.shard} x tp {parallel.tp}; {train.precision}, recompute "
        f"{parallel.recompute}",
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


def check_memory(config: AnyPlan, stages: list[ProcessMemory]) -> None:
    """Refuse what the device can't hold.

    Raises:
        ConfigError: names the stage that is too large and what to change.
    """
    memory = device_of(config).memory_gib
    fullest, limit = most(stages), HEADROOM * memory
    if fullest.total <= limit:
        return
    found = changes(work_of(config), config.parallel, limit, stage_of(config, stage_name(config)))
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


def _check_frozen(config: AnyPlan) -> None:
    """Say what PPO's frozen models take on processes of their own.

    Raises:
        ConfigError: the device can't hold them.
    """
    found = frozen_memory(stage_of(config, stage_name(config)), work_of(config))
    if not found:
        return
    total, limit = most(found).total, HEADROOM * device_of(config).memory_gib
    where = f"{_frozen(config)} processes of the frozen models"
    if total > limit:
        raise ConfigError(
            f"--frozen.processes {_frozen(config)}: each needs about {total:.1f} GiB, "
            f"--gpu {config.gpu} has room for {limit:.1f}: raise frozen.tp, frozen.pp or "
            "frozen.shard"
        )
    _print([f"{where}: {total:.1f} GiB each"])
