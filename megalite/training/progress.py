"""Where a run is, and what a stage's work on one step gives back to the trainer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from megalite.data.skipping import Ranges, place_of
from megalite.training.stop import Asked


@dataclass(frozen=True)
class Progress:
    """Where a run is; all of its state that isn't a tensor.

    Attributes:
        step: optimizer steps done, those without finite gradients included.
        consumed_samples: samples of those steps.
        extra: a stage's own numbers, such as PPO's KL coefficient.
        skipped: places in the run's order that are never learned.
    """

    step: int = 0
    consumed_samples: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)
    skipped: Ranges = ()

    @property
    def place(self) -> int:
        """Where the next step's samples begin in the run's order."""
        return place_of(self.consumed_samples, self.skipped)

    def after_step(self, samples: int, extra: Mapping[str, float]) -> "Progress":
        """Where the run is after one step more.

        Args:
            samples: of the step.
            extra: the stage's own numbers that are new or changed.
        """
        return replace(
            self,
            step=self.step + 1,
            consumed_samples=self.consumed_samples + samples,
            extra={**self.extra, **extra},
        )


Metrics = Mapping[str, float]
Seconds = Callable[[], float]
ReadMetrics = Callable[[Seconds], Metrics]


@dataclass(frozen=True)
class StepResult:
    """What a stage's work on one step gives back.

    Attributes:
        metrics: of the step, by name; or what waits for them and gives them, asking how long the
            step took when they are there. The trainer calls it once, in the order of the steps.
        extra: the stage's own numbers to carry on; see :class:`Progress`.
        asked: what a process outside the trainer's mesh was asked.
    """

    metrics: Metrics | ReadMetrics
    extra: Mapping[str, float] = field(default_factory=dict)
    asked: Asked = Asked()

    def known(self, seconds: Seconds) -> Metrics:
        """The metrics; ``seconds`` tells how long the step took so far."""
        return self.metrics(seconds) if callable(self.metrics) else self.metrics


@dataclass(frozen=True)
class Begun:
    """A step that was handed to the device.

    Attributes:
        step: its number.
        started: when.
        result: what its work gave.
        samples: that it had.
        also: metrics of its own.
    """

    step: int
    started: float
    result: StepResult
    samples: int
    also: Mapping[str, float]
