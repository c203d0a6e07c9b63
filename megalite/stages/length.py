"""How long a run is, in the unit that it was told: steps, samples, epochs of them, or tokens."""

from typing import Any, TypeVar

from megalite.config.amount import Amount, Measure
from megalite.config.course import settled as settled_course
from megalite.errors import ConfigError
from megalite.stages.setup import StageConfig
from megalite.training.config import TrainConfig
from megalite.training.schedule import settled as settled_schedule

StageConfigT = TypeVar("StageConfigT", bound=StageConfig)


def in_steps(
    config: StageConfigT, samples: int, tokens: int = 0, key: str = "data.train"
) -> tuple[StageConfigT, list[str]]:
    """A config whose lengths are settled: the run in steps, others in samples; and that in words.

    The last step may go beyond what was told, into the next epoch. ``train.epochs``,
    ``train.tokens`` and ``train.samples`` are 0 in it, so that a run's config.toml says one length.

    Args:
        config: of the run.
        samples: of an epoch, after several were packed into one; 0: not known here.
        tokens: that the decoder reads of a sample; 0: its samples differ.
        key: what has the samples.

    Raises:
        ConfigError: the stage has no such unit, or lengths overlap.
    """
    length = _samples(config.train, samples, tokens, config.stage)
    measure = Measure(_no_steps, tokens, samples, config.stage)
    train = _with_ramp(config.train, measure, length)
    said = []
    if length:
        steps = max(train.ramp.steps_to(length), 1)
        said.append(f"{_told(config.train, samples, key)}: {_steps(train, steps, tokens)}")
        changed = {"steps": steps, "epochs": 0.0, "tokens": 0, "samples": 0}
        train = train.model_copy(update=changed)
    elif not train.steps:
        said.append("train.steps is 0: nothing is trained")
    measure = Measure(train.ramp.after, tokens, samples, config.stage)
    total = train.ramp.after(train.steps)
    schedule = settled_schedule(config.schedule, measure, total)
    for name in ("warmup", "decay", "end"):
        told, found = getattr(config.schedule, name), getattr(schedule, name)
        if told != found:
            said.append(f"schedule.{name} {told}: {found}")
    train = train.model_copy(update=_places(train, measure, total))
    config = config.model_copy(update={"train": train, "schedule": schedule})
    return config.settled_in(measure, total), said


def _places(train: TrainConfig, measure: Measure, total: int) -> dict[str, Any]:
    """What changes at places of the run, with those in samples."""
    places: dict[str, Any] = {
        key: settled_course(getattr(train, key), measure, total, f"train.{key}")
        for key in ("max_grad_norm", "embedding_gradient")
    }
    places["dropout_until"] = measure.settled(train.dropout_until, "train.dropout_until")
    places["skip"] = tuple(_skipped(*told, measure) for told in train.skip)
    return places


def _skipped(first: int | str, end: int | str, measure: Measure) -> tuple[int, int]:
    """A range of places in the run's order; steps are those of a run that skips none."""
    begins, ends = (
        told if isinstance(told, int) else measure.samples(Amount.read(told), "train.skip")
        for told in (first, end)
    )
    if begins >= ends:
        raise ConfigError(
            f"--train.skip [{first}, {end}]: is from sample {begins:,} to {ends:,}: its end must "
            "be after its first"
        )
    return begins, ends


def _no_steps(steps: int) -> int:
    raise AssertionError(f"{steps} steps of a ramp are counted by the ramp")


def _samples(train: TrainConfig, epoch: int, tokens: int, stage: str) -> int:
    """Samples that a run is long; 0: it is told in steps."""
    if train.num_tokens and not tokens:
        raise ConfigError(
            f"--train.tokens {train.tokens}: is a length of pretraining; samples of {stage} "
            "have different lengths: give train.epochs or train.steps"
        )
    if train.num_tokens:
        return -(-train.num_tokens // tokens)
    if train.epochs:
        return max(-int(-train.epochs * epoch // 1), 1)
    return train.num_samples


def _with_ramp(train: TrainConfig, measure: Measure, length: int) -> TrainConfig:
    ramp = train.batch_ramp.settled(train.global_batch_size, measure, length)
    return train.model_copy(update={"batch_ramp": ramp})


def _told(train: TrainConfig, epoch: int, key: str) -> str:
    if train.epochs:
        return f"train.epochs {train.epochs:g} of {epoch:,} samples of {key}"
    return f"train.tokens {train.tokens}" if train.num_tokens else f"train.samples {train.samples}"


def _steps(train: TrainConfig, steps: int, tokens: int) -> str:
    """Steps and what they have, in words."""
    sizes = train.ramp.sizes
    each = f"{sizes[0]:,} to {sizes[-1]:,}" if len(sizes) > 1 else f"{sizes[0]}"
    unit = f"x {tokens:,} tokens" if tokens else "samples"
    return f"{steps:,} steps of {each} {unit}"
