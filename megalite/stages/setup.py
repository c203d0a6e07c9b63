"""What every stage sets up alike: device, mesh, model, log, checkpoints, trainer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import field_validator

from megalite.config import dump
from megalite.config.amount import Measure
from megalite.config.section import Section
from megalite.data.config import StoredConversationConfig, TokenizerConfig
from megalite.data.loader import Dataset, Loader, Placed, Share
from megalite.data.tokenizers.load import load_tokenizer
from megalite.distributed.agreement import text_of_first
from megalite.distributed.beginning import DATA, MODEL, PROCESSES, WEIGHTS
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_meshes, start_process_group
from megalite.distributed.sums import Counts
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.compiled import check_compiles
from megalite.engine.guests import GuestOptions
from megalite.engine.layout import BatchSizes, Demand, check_layout
from megalite.engine.lora import NO_LORA, LoRAConfig
from megalite.engine.model import Model
from megalite.engine.recompute import recomputed_blocks
from megalite.errors import CheckpointError, ConfigError, CrashLoop, Stopped
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.stages import out_of_memory
from megalite.stages.adapters import check_adapters, learned_of
from megalite.stages.device import Precision, check_heads, choose_device, choose_precision
from megalite.stages.local import local_saves
from megalite.stages.named import TOKENIZER, Meaning, urls_of_data
from megalite.stages.overview import overview
from megalite.stages.same_run import check_same_run, sources_of
from megalite.stages.start import Head, load_start, origin_of, settled_model
from megalite.training.checkpoint.checking import Checkers
from megalite.training.checkpoint.local.checkpoints import Place
from megalite.training.checkpoint.manager import CheckpointManager, Saving
from megalite.training.checkpoint.search import newest_facts
from megalite.training.config import (
    CheckpointConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from megalite.training.faults import Fault, FaultConfig
from megalite.training.first_step import FirstStep
from megalite.training.folder.opening import RunFolder
from megalite.training.folder.record import RunRecord
from megalite.training.folder.starts import Starts
from megalite.training.folder.versions import versions
from megalite.training.learner import TARGETS, Learner, Learning
from megalite.training.metrics.device import peak_tflops
from megalite.training.metrics.run_log import RunLog
from megalite.training.metrics.speed import Speed
from megalite.training.metrics.trackers import open_trackers
from megalite.training.progress import Progress
from megalite.training.trainer import Trainer
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.timeouts import SLOW_FACTOR, Timeouts
from megalite.training.watchdog.watchdog import Watchdog

TITLE = "# megalite "  # begins a run's config.toml, before its stage

MakeBatch = Callable[[Sequence[Any], Sequence[int]], Any]


StageConfigT = TypeVar("StageConfigT", bound="StageConfig")


class StageConfig(Section):
    """The sections that every stage has.

    Attributes:
        stage: its name, which its runs' checkpoints keep.
        drops: whether it learns with dropout where it is told to.
    """

    stage: ClassVar[str] = ""
    drops: ClassVar[bool] = True

    run: RunConfig = RunConfig()
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultConfig = FaultConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    lora: LoRAConfig = NO_LORA

    @field_validator("run", mode="before")
    @classmethod
    def _give_folder(cls, run: Any) -> Any:
        """A section without a folder has the stage's."""
        is_without = isinstance(run, dict) and "folder" not in run
        if isinstance(run, dict) and run.get("folder") == "":
            raise ConfigError("--run.folder: is empty: give a folder, or leave it out")
        return {**run, "folder": cls.model_fields["run"].default.folder} if is_without else run

    def batch_sizes(self) -> BatchSizes:
        """Samples of a step, and how they are divided."""
        return self.train.batch_sizes()

    @property
    def code(self) -> Sequence[str]:
        """Files of a user's own that the run calls."""
        return ()

    def settled_in(self: StageConfigT, measure: Measure, total: int) -> StageConfigT:
        """The stage's own lengths and places, in samples of a run of ``total``."""
        return self

    def check_best(self) -> None:
        """Refuse to keep the best of evaluations that there aren't.

        Raises:
            ConfigError: it names the key.
        """
        best, train = self.checkpoint.best, self.train
        if train.patience and not best:
            raise ConfigError(
                f"--train.patience {train.patience}: needs --checkpoint.best, the metric of the "
                "evaluations, such as heldout_loss"
            )
        if best and not (train.evaluate_every and self.has_heldout):
            raise ConfigError(
                f"--checkpoint.best {best}: needs evaluations: give data.heldout and "
                "train.evaluate_every"
            )

    @property
    def has_heldout(self) -> bool:
        """Whether there are samples for evaluations."""
        data = getattr(self, "data")  # noqa: B009 - each stage has its own section
        return bool(data.heldout or data.split or data.validation)

    def check_inputs(self) -> None:
        """Refuse at the start what a stage would otherwise meet late, such as too long rows.

        Raises:
            UserError: it says what is wrong.
        """


def settled(config: StageConfigT, launch: Launch, head: Head = "lm") -> StageConfigT:
    """A stage's whole config: what is left open of its model and tokenizer is as its start has it.

    Names on the Hub get their commits; what they and URLs mean is in this machine's caches.
    ``head`` is that of the model which the stage trains first.

    Raises:
        CheckpointError: the start is no model, or a key of ``[model]`` contradicts it.

    Comm: as :func:`pinned`, of names on the Hub.
    """
    launch.beginning.run_started()
    meaning = Meaning.of(launch, config.run.folder)
    names = meaning.names_in(config)
    reads_once = isinstance(getattr(config, "data", None), StoredConversationConfig)
    if (names or urls_of_data(config) or reads_once) and launch.world_size > 1:
        with launch.beginning.within(PROCESSES):
            device = choose_device(config.run, launch)
            start_process_group(launch, device, config.parallel.timeout_s)
    config, fetched = meaning.bring(config, names)
    config, tokenizer = meaning.with_tokenizer(config)
    if tokenizer and config.tokenizer.path != config.checkpoint.start:
        config, more = meaning.pin(config, [TOKENIZER])
        fetched += more
    config, writing = meaning.with_writing(config)
    vocabulary = 0
    if config.checkpoint.grow_vocabulary:
        vocabulary = load_tokenizer(**config.tokenizer.model_dump()).vocab_size
    start, folder = config.checkpoint.start, config.run.folder
    model, said = settled_model(config.model, start, folder, head, vocabulary)
    if launch.rank == 0:
        for text in filter(None, (*fetched, *tokenizer, *writing, said)):
            print(text, flush=True)  # noqa: T201
    return config.model_copy(update={"model": model})


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
        launch: this process among the run's.
        mesh: the processes that this one shares its models with.
        folder: of the run.
        starts: those that failed, and this one.
        record: what its checkpoints keep of the run.
        log: of the run's folder.
        speed: measures steps.
        heartbeat: is told what this process is doing.
        watchdog: watches over the processes while the run lasts.
        checkers: who check the files of what models start from.
    """

    config: StageConfig
    launch: Launch
    mesh: Mesh
    folder: RunFolder
    starts: Starts
    record: RunRecord
    log: RunLog
    speed: Speed
    heartbeat: Heartbeat
    watchdog: Watchdog
    checkers: Checkers = field(default_factory=Checkers)

    def say(self, *notes: Sequence[str]) -> None:
        """Say what was found in the data, on the console and in log.txt."""
        for group in notes:
            for note in group:
                self.log.say(note)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The run's time: its folder is its own, signals ask it to stop, processes are watched.

        All of that ends with the block, also for a notebook that goes on.
        """
        caught = self.launch.stop.caught(self.launch.rank, self.launch.world_size)
        noted = self.starts.noted(self.heartbeat)
        memory = out_of_memory.told(self.config, self.launch, self.mesh, self.heartbeat)
        try:
            with self.folder.in_use(), noted, caught, self.watchdog, memory:
                self.launch.beginning.enter(MODEL)
                yield
        except Stopped as stopped:
            if stopped.is_for_good:
                self.launch.end_launcher()
            raise

    def model(
        self,
        config: ModelConfig,
        start: str = "",
        needs_head: bool = False,
        lora: LoRAConfig = NO_LORA,
        guests: Sequence[GuestOptions] = (),
    ) -> Model:
        """A model, its weights from ``start`` (a checkpoint or a Hugging Face folder) if given.

        A reward model starts from a language model: its scalar head is new then, unless
        ``needs_head``. ``lora`` are its adapters; ``guests`` start as they are initialised.
        """
        settings, beginning = self.config, self.launch.beginning
        precision = choose_precision(settings.train.precision, self.mesh.device)
        check_heads(config, self.mesh.device)
        with beginning.within(MODEL):
            model = build_model(
                config,
                self.mesh,
                settings.parallel,
                seed=settings.run.seed,
                precision=precision,
                options=BuildOptions(settings.train.compile, lora, guests),
            )
        if start:
            grows = settings.checkpoint.grow_vocabulary
            with beginning.within(WEIGHTS):
                load_start(model, start, needs_head, grows, self.checkers)
        return model

    def trainer(self, *models: tuple[str, Model]) -> tuple[Trainer, list[Learner]]:
        """A trainer of these named models, and what each of them learns with.

        The first one's weights are averaged, where ``train.average`` asks for it.
        """
        config = self.config
        learning = Learning(config.train, config.optimizer, config.schedule, config.run.seed)
        others = replace(learning, train=config.train.model_copy(update={"average": 0.0}))
        learners = [
            Learner(model, self.mesh, others if number else learning, name, self.heartbeat)
            for number, (name, model) in enumerate(models)
        ]
        timeout = SLOW_FACTOR * self.mesh.timeout
        saving = Saving(self.heartbeat, timeout, self.mesh.ranks(), self.log.write_lines)
        checkpoints = CheckpointManager(
            self.log.folder / "checkpoints",
            keep=config.checkpoint.keep,
            asynchronous=config.checkpoint.asynchronous,
            say=self.log.say,
            saving=saving,
        )
        every, record, stop = config.checkpoint.every, self.record, self.launch.stop
        trainer = Trainer(learners, self.log, checkpoints, every, record, stop)
        lines = overview(config, self.mesh, [(n, model.config) for n, model in models])
        lines += [learned_of(learner, config) for learner in learners if learner.model.lora.rank]
        beginning = self.launch.beginning
        trainer.introduce(lines, FirstStep(beginning, self.mesh, self.starts.note_first_step))
        trainer.keep_best(config.checkpoint.best)
        place, local = Place.of(self.launch), config.checkpoint.local
        saves = local_saves(local, checkpoints, saving, place, self.log, self.starts)
        trainer.save_locally(saves)
        return trainer, learners

    def counts(self, targets: int, batches: Sequence[Batch]) -> Counts:
        """What the host knows of a step of these micro-batches, summed over dp meanwhile."""
        own = {TARGETS: targets, **self.speed.counts(batches)}
        return Counts(own, self.mesh.dp, self.mesh.device)

    def loader(
        self,
        dataset: Dataset | Placed,
        make: MakeBatch,
        progress: Progress,
        seed: int | None = None,
        size: int = 0,
    ) -> Loader:
        """What reads this data-parallel rank's share of each step's samples.

        Args:
            dataset: samples by number.
            make: makes a micro-batch of samples and their numbers in the run's order.
            progress: the first step that is read is the one after it.
            seed: of the order; None: the run's.
            size: samples that ``make`` is given; 0: a micro-batch of them.
        """
        train, dp = self.config.train, self.mesh.dp
        size = size or train.micro_batch_size
        return Loader(
            dataset,
            make,
            Share(train.global_batch_size, size, dp.rank, dp.size, train.ramp),
            seed=self.config.run.seed if seed is None else seed,
            consumed_samples=progress.consumed_samples,
            skipped=progress.skipped,
        )


def set_up(
    config: StageConfig,
    launch: Launch,
    separate: SeparateMesh | None = None,
) -> Stage:
    """Start the processes' mesh and open the run's folder.

    Args:
        config: of the run.
        launch: this process among the run's.
        separate: the last processes' own mesh; None: all processes are in one.

    Returns:
        The stage of this process; one in the separate mesh has its layout in the config.

    Raises:
        ConfigError: the layout doesn't fit, there is no such device, it can't compute this model in
            this number format, processes were told different things, or the folder can't be
            written or is in use.
        CheckpointError: the folder is of another run.
        CrashLoop: starts failed one after another at the same place.
    """
    launch.beginning.enter(PROCESSES)
    device = choose_device(config.run, launch)
    own = launch.world_size - (separate.processes if separate else 0)
    demand = Demand(config.model, own, config.batch_sizes())
    check_layout(demand, config.parallel)
    config.check_inputs()
    config.check_best()
    check_adapters(config)
    check_heads(config.model, device)
    if config.train.compile:
        check_compiles(config.model, config.parallel, device)
    config = _with_precision(config, choose_precision(config.train.precision, device))
    start_process_group(launch, device, config.parallel.timeout_s)
    with launch.beginning.within(DATA):
        record = record_of(config, launch, versions(device, launch.world_size, config.code))
    check_same_run(launch, record)
    folder = RunFolder(config.run.folder, launch)
    folder.open(lambda path: _check_run_of(path, record, config.checkpoint.start))
    try:
        starts = Starts(folder.path, config.run.most_failures, config.train.ramp)
        _check_starts(starts, launch)
        return _stage_in(folder, starts, record, config, device, separate)
    except BaseException:
        folder.release()
        raise


def _check_starts(starts: Starts, launch: Launch) -> None:
    """Note this start, or refuse it and end torchrun, where those before failed one after another.

    Comm: a text of the first process through the store.
    """
    said = text_of_first(launch, lambda: starts.begin(launch))
    if said:
        launch.end_launcher()
        raise CrashLoop(said)


def record_of(config: StageConfig, launch: Launch, computed: Mapping[str, str]) -> RunRecord:
    """What a run is; what it reads from elsewhere is looked at by the first process of a node.

    ``computed`` are the versions of what computes it.
    """
    values = config.model_dump(mode="json")
    try:
        origin = origin_of(config.checkpoint.start)
    except CheckpointError:
        origin = {}  # said where the folder is opened: a run that goes on may have moved its start
    sources = sources_of(values) if launch.local_rank == 0 else {}
    text = f"{TITLE}{config.stage}\n{dump(config)}"
    return RunRecord(config.stage, values, sources, origin, text, computed, type(config))


def _check_run_of(folder: Path, record: RunRecord, start: str) -> None:
    """Refuse a folder whose checkpoints are of another run, and a start that isn't there."""
    found = newest_facts(folder / "checkpoints")
    if found is None:
        _check_stage_of(folder, record.stage)
        origin_of(start)
        return
    record.check(found[1], found[0])


def _check_stage_of(folder: Path, stage: str) -> None:
    """Refuse the folder of another stage's run that ended before its first checkpoint."""
    config, metrics = folder / "config.toml", folder / "metrics.jsonl"
    if not (config.is_file() and metrics.is_file() and metrics.stat().st_size):
        return
    first = config.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    if first.startswith(TITLE) and first != f"{TITLE}{stage}":
        raise CheckpointError(
            f"--run.folder {folder}: has the metrics of a run of {first.removeprefix(TITLE)}, this "
            f"is {stage}: give each run a folder of its own"
        )


def _stage_in(
    folder: RunFolder,
    starts: Starts,
    record: RunRecord,
    config: StageConfig,
    device: torch.device,
    separate: SeparateMesh | None,
) -> Stage:
    """The stage of a run whose folder is open. Comm: as :func:`build_meshes`."""
    launch = folder.launch
    own = launch.world_size - (separate.processes if separate else 0)
    meshes = [(own, config.parallel)]
    if separate is not None:
        meshes.append((separate.processes, separate.parallel))
        if launch.rank >= own:
            config = config.model_copy(update={"parallel": separate.parallel})
    mesh = build_meshes(launch, meshes, device)
    log = RunLog(
        folder.path,
        launch.rank == 0,
        config.train.steps,
        lambda path: open_trackers(config.run.trackers, path, config.model_dump(mode="json")),
        config.train.ramp.after,
    )
    peak = peak_tflops(device, config.train.precision)
    speed = Speed(config.model, mesh, peak, recomputed_blocks(config.model, config.parallel))
    heartbeat = Heartbeat(Fault(config.faults, launch), launch.beginning)
    timeouts = Timeouts.beside(config.parallel.timeout_s)
    faults = log.folder / "faults" / f"restart-{launch.restart}"
    watchdog = Watchdog(launch, heartbeat, timeouts, faults)
    return Stage(
        config,
        launch,
        mesh,
        folder,
        starts,
        record,
        log,
        speed,
        heartbeat,
        watchdog,
        Checkers.of_node(launch, mesh),
    )


def _with_precision(config: StageConfig, precision: Precision) -> StageConfig:
    train = config.train.model_copy(update={"precision": precision})
    return config.model_copy(update={"train": train})
