"""Spikes of the loss and of the gradient's norm, against what the steps before had.

Each value is compared with the middle of the few before it, which follows a falling curve. A step
is a spike where it rises above that by more than the larger of ``threshold`` deviations (1.4826
times the median absolute deviation of the window's rises, but never less than a floor) and three
times the distance from their median to their 95th percentile. That holds for logarithms, and for
the loss itself too: noise is even in one or the other. Neither median moves with a few spikes.
Until the window has half of its steps, nothing is a spike.
"""

import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from itertools import islice
from typing import Literal

from pydantic import Field

from megalite.config.section import Section
from megalite.data.skipping import Ranges, learned_to, place_of
from megalite.training.progress import Progress

WINDOW_STEPS, FEWEST_STEPS = 128, 32
AROUND_STEPS = 8
MIDDLE_STEPS = 16
NORMAL = 1.4826  # a normal distribution's deviation by its median absolute deviation
TAIL, TAIL_FACTOR = 0.95, 3.0
LOSS_FLOOR, NORM_FLOOR = 0.02, 0.1  # least deviation: in nats; of a norm's natural logarithm
LARGEST_LOGARITHM, SMALLEST = 700.0, 1e-30  # within a float
WATCHED = ("loss", "grad_norm", "critic_grad_norm")


class SpikeConfig(Section):
    """Spikes of the loss or of the gradient's norm, and what is done about them."""

    policy: Literal["off", "warn", "skip", "rollback"] = Field(
        "warn",
        description="what a spike leads to; off: nothing; warn: a line; skip: the step's update "
        "is dropped; rollback: the run goes back to a checkpoint from before it and never learns "
        "the samples around it",
    )
    threshold: float = Field(
        10.0, gt=0, description="deviations above the steps before from which a step is a spike"
    )
    window: int = Field(
        0, ge=0, description="samples that a step is compared with; 0: those of 128 steps"
    )
    around: int = Field(
        0,
        ge=0,
        description="samples left out before and after those of the spike; 0: those of 8 steps",
    )
    limit: int = Field(
        10,
        ge=0,
        description="times that a run goes back, or drops a step; the next spike ends it with "
        "advice",
    )


@dataclass(frozen=True)
class Spike:
    """A step that is a spike.

    Attributes:
        step: its number.
        metric: of which.
        value: that it had.
        bound: that it is above.
        middle: of the few steps before.
    """

    step: int
    metric: str
    value: float
    bound: float
    middle: float

    def __str__(self) -> str:
        return (
            f"step {self.step}: a spike: {self.metric} {self.value:.4g} is above {self.bound:.4g}; "
            f"the steps before have {self.middle:.4g}"
        )


@dataclass(frozen=True)
class Seen:
    """What is kept of a step.

    Attributes:
        samples: of the step.
        value: of the metric.
        rise: of the value above the middle of those before.
        growth: the same of their logarithms.
    """

    samples: int
    value: float
    rise: float
    growth: float


class SpikeDetector:
    """Compares each step with those before it; its state is a function of their metrics alone."""

    def __init__(self, config: SpikeConfig, batch: int) -> None:
        """Begin with nothing seen.

        Args:
            config: of the section.
            batch: samples of a step, after it has grown.
        """
        self._config, self._batch, self._last = config, batch, batch
        self._seen: dict[str, deque[Seen]] = {}

    @property
    def _samples(self) -> int:
        return self._config.window or WINDOW_STEPS * self._batch

    def see(self, step: int, metrics: Mapping[str, float], samples: int = 0) -> list[Spike]:
        """What of a step's metrics is a spike; they belong to the window from here on.

        Args:
            step: its number.
            metrics: of the step.
            samples: of the step; 0: as many as in the whole batch.
        """
        self._last = samples or self._batch
        if self._config.policy == "off":
            return []
        spikes = []
        for metric, value in metrics.items():
            if metric not in WATCHED or not math.isfinite(value):
                continue  # a dropped step has a line of its own
            seen = self._seen.setdefault(metric, deque())
            middle = _middle(seen) if seen else value
            bound = self._bound(metric, middle, seen)
            if value > bound:
                spikes.append(Spike(step, metric, value, bound, middle))
            growth = _logarithm(value) - _logarithm(middle)
            seen.append(Seen(self._last, value, value - middle, growth))
            while self._is_enough_without_first(seen):
                seen.popleft()
        return spikes

    def bounds(self) -> dict[str, float]:
        """What the next step's metrics are spikes above; of those that may be."""
        found = {m: self._bound(m, _middle(seen), seen) for m, seen in self._seen.items() if seen}
        return {metric: bound for metric, bound in found.items() if bound < math.inf}

    def _is_enough_without_first(self, seen: deque[Seen]) -> bool:
        left = sum(one.samples for one in seen) - seen[0].samples
        return len(seen) > FEWEST_STEPS and left >= self._samples

    def _bound(self, metric: str, middle: float, seen: deque[Seen]) -> float:
        """The value above which is a spike; infinite where too few steps were seen."""
        if len(seen) < max(FEWEST_STEPS, self._samples // self._batch // 2):
            return math.inf
        threshold, is_loss = self._config.threshold, metric == "loss"
        floor = 0.0 if is_loss else NORM_FLOOR
        growth = _bound_of([one.growth for one in seen], threshold, floor)
        bound = math.exp(min(_logarithm(middle) + growth, LARGEST_LOGARITHM))
        if is_loss:
            rise = _bound_of([one.rise for one in seen], threshold, LOSS_FLOOR)
            bound = max(bound, middle + rise)
        return bound

    def around(self, progress: Progress) -> Ranges:
        """Ranges of places that may be skipped for a spike in the last step, the best first.

        Args:
            progress: after that step.
        """
        end = learned_to(progress.consumed_samples, progress.skipped)
        first = place_of(progress.consumed_samples - self._last, progress.skipped)
        more = self._config.around or AROUND_STEPS * self._batch
        return (max(first - more, 0), end + more), (first, end + more)

    def facts(self) -> dict[str, list[list[float]]]:
        """Its state, for a checkpoint."""
        return {metric: [list(astuple(one)) for one in seen] for metric, seen in self._seen.items()}

    def restore(self, facts: Mapping[str, list[list[float]]]) -> None:
        """Take :meth:`facts` back."""
        self._seen = {
            metric: deque(Seen(int(samples), *values) for samples, *values in seen)
            for metric, seen in facts.items()
        }


def _middle(seen: deque[Seen]) -> float:
    """The middle of the last values."""
    return statistics.median(one.value for one in islice(reversed(seen), MIDDLE_STEPS))


def _logarithm(value: float) -> float:
    return math.log(max(value, SMALLEST))


def _bound_of(rises: list[float], threshold: float, floor: float) -> float:
    """The largest rise that is none of a spike."""
    median = statistics.median(rises)
    deviation = NORMAL * statistics.median(abs(rise - median) for rise in rises)
    tail = sorted(rises)[int(TAIL * len(rises))] - median
    return median + max(threshold * max(deviation, floor), TAIL_FACTOR * tail)
