"""The learning rate as a function of samples seen, independent of the batch size."""

import math
from dataclasses import dataclass

from megalite.training.config import ScheduleConfig, TrainConfig
from megalite.training.progress import Progress


@dataclass(frozen=True)
class Clock:
    """The learning rate of a run, by the samples that it has seen.

    Attributes:
        schedule: the curve.
        peak: the highest learning rate.
        total_samples: of the whole run: those seen, and those of the steps to come.
    """

    schedule: ScheduleConfig
    peak: float
    total_samples: int

    def learning_rate(self, consumed_samples: int) -> float:
        """Of the step that begins after so many samples."""
        return self.peak * rate(self.schedule, consumed_samples, self.total_samples)


def rate(config: ScheduleConfig, samples: int, total: int) -> float:
    """Share of the peak learning rate for the step that begins after ``samples`` of ``total``.

    Linear warm-up to 1, then cosine or linear decay to ``floor``, or constant, or (wsd) constant
    and a linear decay over the last share ``decay``.
    """
    done = min(samples / max(total, 1), 1.0)
    if done < config.warmup:
        return (samples + 1) / (config.warmup * total + 1)
    if config.kind == "constant":
        return 1.0
    begin = 1.0 - config.decay if config.kind == "wsd" else config.warmup
    progress = min(max((done - begin) / max(1.0 - begin, 1e-12), 0.0), 1.0)
    if config.kind == "cosine":
        progress = 0.5 * (1.0 - math.cos(math.pi * progress))
    return 1.0 - (1.0 - config.floor) * progress


def total_samples(train: TrainConfig, progress: Progress) -> int:
    """Samples of a whole run: those seen, and those of the steps that are left."""
    left = max(train.steps - progress.step, 0)
    return progress.consumed_samples + left * train.global_batch_size
