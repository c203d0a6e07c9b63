"""The learning rate as a function of samples seen, independent of the batch size."""

import math

from megalite.training.config import ScheduleConfig


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
