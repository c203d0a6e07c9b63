"""What a training run is told, besides its model, data and layout."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from megalite.config.amount import Amount, Length, in_samples, read_number
from megalite.config.course import Course, values_of
from megalite.config.section import Section, UsualName
from megalite.data.ramp import Ramp, RampConfig
from megalite.engine.layout import BatchSizes
from megalite.errors import ConfigError
from megalite.files.urls import check_no_url
from megalite.training.curve import CurveConfig, PhaseConfig
from megalite.training.metrics.trackers import TrackerName
from megalite.training.recheck import RecheckConfig
from megalite.training.spikes import SpikeConfig
from megalite.training.stragglers import StragglerConfig
from megalite.training.updates.adafactor import AdafactorConfig
from megalite.training.updates.lion import LionConfig
from megalite.training.updates.muon import MuonConfig

STEPS = 1000  # of a run that says nothing of its length


class RunConfig(Section):
    """Where a run writes, and what makes it repeatable."""

    folder: str = Field(
        "",
        description="folder of the run's metrics, checkpoints, log and resolved config; a stage's "
        "default is runs/ and its name",
    )
    seed: int = Field(0, ge=0, description="seed of initial values, sample order and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="device that computes: cpu, cuda (each process its own GPU), or auto: cuda "
        "where there is a GPU that the kernels of this build run on",
    )
    threads: int = Field(0, ge=0, description="CPU threads per process; 0: cores / processes")
    most_failures: int = Field(
        3,
        ge=0,
        description="starts in a row that failed without a checkpoint between them after which "
        "torchrun's or SLURM's next one is refused; 0: never",
    )
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",),
        strict=False,  # a stage that gives its folder hands this section on as Python's lists
        description="where metrics go besides metrics.jsonl: tensorboard (files in the folder), "
        "wandb, mlflow",
    )

    @field_validator("folder")
    @classmethod
    def _check_folder(cls, folder: str) -> str:
        check_no_url("run.folder", folder)
        return folder


class DriftConfig(Section):
    """Copies of a parameter or of its optimizer state that processes hold and must be equal."""

    every: int = Field(
        100,
        ge=0,
        description="steps between comparisons of all copies, which each save has too; 0: never",
    )
    policy: Literal["stop", "resync"] = Field(
        "stop",
        description="what follows where copies differ, after a line that names tensor and rank; "
        "stop: the run ends, unsaved; resync: all take the copy that most have",
    )


class TrainConfig(Section):
    """The training loop."""

    steps: int = Field(STEPS, ge=0, description="optimizer steps of the run")
    epochs: float = Field(
        0.0,
        ge=0,
        description="passes over the training samples that the run is long, instead of steps; 0: "
        "steps say it",
    )
    tokens: int | str = Field(
        0,
        description="tokens that a pretraining reads, instead of steps: a number, perhaps with K, "
        "M, B or T behind it, such as 10B; 0: steps say it",
    )
    samples: int | str = Field(
        0,
        description="samples that a run learns, instead of steps: a number, perhaps with K, M, B "
        "or T behind it, such as 220M; 0: steps say it",
    )
    global_batch_size: int = Field(
        8, ge=1, description="samples per optimizer step, over all processes"
    )
    batch_ramp: RampConfig = RampConfig()
    micro_batch_size: int = Field(
        1, ge=1, description="samples per forward pass of a data-parallel rank"
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="number format of compute: fp32 (CPU only), bf16, fp16 with a dynamic loss "
        "scale, or auto: fp32 on a CPU, on a GPU bf16 where it has it, else fp16; parameters and "
        "optimizer state stay fp32",
    )
    max_grad_norm: Course = Field(
        1.0,
        description="largest global gradient norm, clipped to beyond it; 0: no clipping; perhaps "
        'changing, such as { 0 = 1.0, "40B tokens" = 0.3 }',
    )
    embedding_gradient: Course = Field(
        1.0,
        description="factor of the gradient of the tokens' embedding, and of a head that is tied "
        'to it, such as 0.1 or { 0 = 0.1, "to 20B tokens" = 1.0 } (GLM-130B)',
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of a running mean of the weights of each step (InstructGPT: 0.992), "
        "kept in checkpoints for `megalite convert --average true`; in PPO the actor's; 0: none",
    )
    dropout_until: Length = Field(
        1.0,
        description="place of the run from which on nothing is dropped: a share, or steps, "
        "samples, tokens or epochs",
    )
    compile: bool = Field(
        False,
        description="whether PyTorch compiles the blocks' training passes, which takes minutes at "
        "the start; not with tensor or pipeline parallelism, selective recompute or dropout",
    )
    max_bad_steps: int = Field(
        20, ge=1, description="steps in a row without finite gradients after which the run ends"
    )
    most_minutes: float = Field(
        0.0,
        ge=0,
        description="minutes of a start after which it saves and ends, with exit code 3; 0: never",
    )
    skip: tuple[tuple[int | str, int | str], ...] = Field(
        (),
        description="ranges [first, end) of samples, counted from 0 in the run's order, or of "
        "steps or tokens such as ['40700 steps', '40900 steps'], that are never learned; a run "
        "that has learned some goes back to the checkpoint before",
    )
    spikes: SpikeConfig = SpikeConfig()
    drift: DriftConfig = DriftConfig()
    stragglers: StragglerConfig = StragglerConfig()
    recheck: RecheckConfig = RecheckConfig()
    log_every: int = Field(10, ge=1, description="steps between console lines")
    evaluate_every: int = Field(0, ge=0, description="steps between evaluations; 0: never")
    patience: int = Field(
        0,
        ge=0,
        description="evaluations in a row that don't better the best checkpoint.best, after which "
        "the run ends; 0: it goes to its last step",
    )
    evaluate_samples: int = Field(
        64,
        ge=1,
        description="held-out samples per evaluation; a reward model's and DPO's are all of them",
    )

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        given = {
            "epochs": self.epochs,
            "tokens": self.num_tokens,
            "samples": self.num_samples,
        }
        told = [key for key, value in given.items() if value]
        told += ["steps"] if self.steps not in (0, STEPS) else []
        if len(told) > 1:
            both = " and ".join(f"train.{key} {getattr(self, key)}" for key in told)
            raise ConfigError(
                f"--train.{told[0]}: {both} are each a run's length: give one, and 0 for the other"
            )
        for key in ("max_grad_norm", "embedding_gradient"):
            if min(values_of(getattr(self, key))) < 0:
                raise ConfigError(f"--train.{key} {getattr(self, key)}: must not be negative")
        self.batch_ramp.check(self.global_batch_size)
        for first, end in self.skip:
            _check_skip(first, end)
        return self

    @property
    def num_tokens(self) -> int:
        """``tokens`` as a number.

        Raises:
            ConfigError: it is none.
        """
        return _number("tokens", self.tokens, "10B")

    @property
    def num_samples(self) -> int:
        """``samples`` as a number; raises as :attr:`num_tokens`."""
        return _number("samples", self.samples, "220M")

    @property
    def skipped(self) -> tuple[tuple[int, int], ...]:
        """``skip`` as places in the run's order; they are settled."""
        places = ((in_samples(first, 0), in_samples(end, 0)) for first, end in self.skip)
        return tuple(places)

    @property
    def ramp(self) -> Ramp:
        """Samples of each step; the ramp's places are told in samples."""
        return self.batch_ramp.ramp(self.global_batch_size)

    @property
    def full_steps(self) -> float:
        """Steps of ``global_batch_size`` samples that the run's samples would take."""
        return self.ramp.after(self.steps) / self.global_batch_size

    def batch_sizes(self, updates: int = 1, has_text: bool = False, answers: int = 1) -> BatchSizes:
        """Samples of a step and of a forward pass; see :class:`BatchSizes`."""
        size = self.global_batch_size
        before = self.batch_ramp.all_sizes(size)[:-1]
        return BatchSizes(size, self.micro_batch_size, updates, has_text, before, answers)


def _check_skip(first: int | str, end: int | str) -> None:
    """Refuse a range of places in the run's order that is none.

    Raises:
        ConfigError: it names the range.
    """
    where = f"--train.skip [{first}, {end}]"
    try:
        told = [
            Amount.read(f"{one} samples" if isinstance(one, int) else one) for one in (first, end)
        ]
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    if "share" in (told[0].unit, told[1].unit):
        raise ConfigError(f"{where}: must be numbers of samples, or have a unit such as '9 steps'")
    if told[0].unit == told[1].unit and not told[0].number < told[1].number:
        raise ConfigError(
            f"{where}: must be a range [first, end) of samples, counted from 0: end must be more "
            "than first"
        )


def _number(key: str, told: int | str, example: str) -> int:
    number = read_number(str(told) or "0")
    if number is None:
        raise ConfigError(
            f"--train.{key} {told}: must be a number, perhaps with K, M, B or T behind it, such "
            f"as {example}"
        )
    return number


class OptimizerConfig(Section):
    """How gradients change parameters. Loshchilov & Hutter 2017, arXiv:1711.05101 (AdamW)."""

    kind: Literal["adamw", "apex", "adafactor", "lion", "muon"] = Field(
        "adamw",
        description="update rule: adamw (PyTorch's fused AdamW), apex (NVIDIA apex's FusedAdam), "
        "adafactor (a matrix's second moment by row and column), lion (the sign of a momentum), "
        "or muon (orthogonal updates of the blocks' matrices, AdamW for the rest)",
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    beta1: float = Field(
        0.9, ge=0, lt=1, description="AdamW's decay of the gradients' running mean"
    )
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW's decay of their running mean square")
    eps: float = Field(
        1e-8, gt=0, description="AdamW's number added to the root of the mean square"
    )
    weight_decay: float = Field(
        0.1, ge=0, description="decoupled weight decay, of what decayed names"
    )
    decayed: tuple[
        Literal["blocks", "embedding", "positions", "relative", "head", "vectors"], ...
    ] = Field(
        ("blocks", "embedding", "positions", "relative", "head"),
        description="what decays: blocks (their matrices), the tables embedding, positions and "
        "relative, the head's own matrix, and vectors (biases and norms)",
    )
    adafactor: AdafactorConfig = AdafactorConfig()
    lion: LionConfig = LionConfig()
    muon: MuonConfig = MuonConfig()


class ScheduleConfig(CurveConfig):
    """The learning rate over samples."""

    phases: Annotated[tuple[PhaseConfig, ...], UsualName("schedule")] = Field(
        (), description="curves one after another: each begins where the one before ends"
    )


class LocalConfig(Section):
    """Checkpoints on a disk of each node's own, with a copy on the next node."""

    folder: str = Field(
        "",
        description="folder on a fast disk of each node's own, not shared, where processes save "
        "between shared checkpoints; empty: none",
    )
    every: int = Field(10, ge=1, description="steps between local checkpoints, with a folder")


class CheckpointConfig(Section):
    """When state is saved and how much of it is kept."""

    every: int = Field(100, ge=0, description="steps between checkpoints; 0: at the end only")
    keep: int = Field(2, ge=2, description="number of complete checkpoints that are kept")
    best: str = Field(
        "",
        description="metric of evaluations, such as heldout_loss, whose best checkpoint is kept "
        "whatever keep says; a loss, KL, error, self-BLEU or rejected_reward is better when it is "
        "lower, another metric when it is higher; empty: none",
    )
    asynchronous: bool = Field(
        True, description="whether a thread writes a copy of the state while training goes on"
    )
    start: str = Field(
        "",
        description="run, checkpoint, Hugging Face folder or name on its Hub (OWNER/NAME, perhaps "
        "@ and a branch, tag or commit) whose weights the run starts from; empty: initial values",
    )
    grow_vocabulary: bool = Field(
        False,
        description="whether tables of a start with fewer tokens than the tokenizer, or than "
        "model.vocab_size, get rows, each the mean of those that are there (Alpaca's); false: "
        "refused",
    )
    local: LocalConfig = LocalConfig()

    @model_validator(mode="after")
    def _check(self) -> "CheckpointConfig":
        check_no_url("checkpoint.local.folder", self.local.folder)
        often = self.local.every
        if self.local.folder and 0 < self.every <= often:
            raise ConfigError(
                f"--checkpoint.local.every {often}: must be less than checkpoint.every, which is "
                f"{self.every}: local checkpoints are those between the shared ones"
            )
        return self
