"""Where a run is, and what a stage's work on one step gives back to the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from megalite.data.skipping import Ranges, place_of


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


@dataclass(frozen=True)
class StepResult:
    """What a stage's work on one step gives back.

    Attributes:
        metrics: of the step, by name.
        extra: the stage's own numbers to carry on; see :class:`Progress`.
        asked_to_stop: whether a process outside the trainer's mesh was asked to stop.
    """

    metrics: Mapping[str, float]
    extra: Mapping[str, float] = field(default_factory=dict)
    asked_to_stop: bool = False
