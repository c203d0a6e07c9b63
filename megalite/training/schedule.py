"""The learning rate as a function of samples seen, independent of the batch size."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from megalite.config.amount import Measure, in_samples
from megalite.errors import ConfigError
from megalite.training.config import ScheduleConfig, TrainConfig
from megalite.training.curve import CurveConfig, rate
from megalite.training.progress import Progress

LENGTHS = ("warmup", "end", "decay", "begin")  # the keys of a curve that are told in units


@dataclass(frozen=True)
class Phase:
    """A curve and its place in a run.

    Attributes:
        curve: with settled lengths.
        first: samples of the run before it.
        total: samples from there to the next phase, or to the run's end.
        peak: share of the run's peak that the curve's is.
    """

    curve: CurveConfig
    first: int
    total: int
    peak: float = 1.0


@dataclass(frozen=True)
class Clock:
    """The learning rate of a run, by the samples that it has seen.

    Attributes:
        schedule: the curves; their lengths are settled.
        peak: the highest learning rate.
        total_samples: of the whole run: those seen, and those of the steps to come.
    """

    schedule: ScheduleConfig
    peak: float
    total_samples: int

    def learning_rate(self, consumed_samples: int) -> float:
        """Of the step that begins after so many samples."""
        found = phases(self.schedule, self.total_samples)
        here = next(found)
        for phase in found:
            if phase.first <= consumed_samples:
                here = phase
        share = rate(here.curve, consumed_samples - here.first, here.total)
        return self.peak * here.peak * share


def phases(schedule: ScheduleConfig, total: int) -> Iterator[Phase]:
    """The curves of a run of ``total`` samples, in order."""
    begins = [0, *(in_samples(phase.begin, total) for phase in schedule.phases)]
    totals = [end - first for first, end in pairwise((*begins, max(total, begins[-1])))]
    yield Phase(schedule, 0, totals[0])
    for phase, first, length in zip(schedule.phases, begins[1:], totals[1:], strict=True):
        yield Phase(phase, first, length, phase.peak)


def settled(schedule: ScheduleConfig, measure: Measure, total: int) -> ScheduleConfig:
    """A schedule whose lengths are shares or samples.

    Raises:
        ConfigError: lengths or phases overlap, or the stage has no such unit.
    """
    later = tuple(
        phase.model_copy(update=_lengths(phase, measure, f"schedule.phases.{number}"))
        for number, phase in enumerate(schedule.phases)
    )
    found = schedule.model_copy(update={**_lengths(schedule, measure, "schedule"), "phases": later})
    _check(found, schedule, total)
    return found


def _lengths(curve: CurveConfig, measure: Measure, where: str) -> dict[str, float | str]:
    keys = [key for key in LENGTHS if key in type(curve).model_fields]
    return {key: measure.settled(getattr(curve, key), f"{where}.{key}") for key in keys}


def _check(schedule: ScheduleConfig, told: ScheduleConfig, total: int) -> None:
    """Refuse curves that overlap, in the words of ``told``, whose lengths are not settled."""
    begins = [0, *(in_samples(phase.begin, total) for phase in schedule.phases)]
    for number, (before, begin) in enumerate(pairwise(begins)):
        if begin <= before:
            raise ConfigError(
                f"--schedule.phases.{number}.begin {told.phases[number].begin}: is at sample "
                f"{begin:,}, and the phase before begins at {before:,}: phases must not overlap"
            )
    found = list(phases(schedule, total))
    for number, (phase, curve) in enumerate(zip(found, (told, *told.phases), strict=True)):
        key = f"schedule.phases.{number - 1}" if number else "schedule"
        phase.curve.check_in(phase.total, curve.named(key), phase is found[-1])


def total_samples(train: TrainConfig, progress: Progress) -> int:
    """Samples of a whole run: those seen, and those of the steps that are left."""
    left = max(train.steps - progress.step, 0)
    return train.ramp.after(left, progress.consumed_samples)
