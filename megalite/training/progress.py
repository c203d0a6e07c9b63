"""Where a run is, and what a stage's work on one step gives back to the trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Progress:
    """Where a run is; all of its state that isn't a tensor.

    Attributes:
        step: optimizer steps done, those without finite gradients included.
        consumed_samples: samples of those steps.
        extra: a stage's own numbers, such as PPO's KL coefficient.
    """

    step: int = 0
    consumed_samples: int = 0
    extra: Mapping[str, float] = field(default_factory=dict)

    def after_step(self, samples: int, extra: Mapping[str, float]) -> "Progress":
        """Where the run is after one step more.

        Args:
            samples: of the step.
            extra: the stage's own numbers that are new or changed.
        """
        return Progress(self.step + 1, self.consumed_samples + samples, {**self.extra, **extra})


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
