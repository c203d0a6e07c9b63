"""Constants of a type of device, from the rows that may set them."""

import dataclasses
import math
from collections.abc import Sequence

from benchmarks.planner.rows import Row, predicted
from megalite.plan.constants import NAMES, Constants

BOUNDS = {  # shares are below 1
    "product": (0.3, 0.98),
    "half_depth": (1.0, 3000.0),
    "batched": (0.05, 0.95),
    "fused": (0.1, 0.95),
    "memory": (0.2, 0.95),
    "link": (0.1, 0.95),
    "network": (0.05, 0.95),
    "onload": (0.05, 0.95),
    "block_s": (1e-6, 3e-3),
    "collective_s": (1e-6, 1e-3),
    "hidden": (0.05, 1.0),
    "contention": (0.0001, 0.8),
    "straggling": (1e-4, 0.05),
}


def distance(rows: Sequence[Row], constants: Constants) -> float:
    """The mean over groups of rows of how far predicted and published seconds are apart.

    A mean of absolute logarithms, so that a few rows that the model misses don't bend it.
    """
    groups: dict[str, list[float]] = {}
    for row in rows:
        ratio = predicted(row, constants).total / row.seconds
        groups.setdefault(row.group, []).append(abs(math.log(ratio)))
    weights = {name: math.sqrt(len(errors)) for name, errors in groups.items()}
    total = sum(weights[name] * sum(e) / len(e) for name, e in groups.items())
    return total / sum(weights.values())


def fitted(rows: Sequence[Row], rounds: int = 40) -> Constants:
    """The constants at which the rows are nearest, by a search along each in turn."""
    best = Constants()
    least, steps = distance(rows, best), dict.fromkeys(NAMES, 0.4)
    for _ in range(rounds):
        for name in NAMES:
            for sign in (1.0, -1.0):
                low, high = BOUNDS[name]
                value = getattr(best, name) * math.exp(sign * steps[name])
                tried = dataclasses.replace(best, **{name: min(max(value, low), high)})
                found = distance(rows, tried)
                if found < least:
                    best, least, steps[name] = tried, found, steps[name] * 1.3
                    break
            else:
                steps[name] *= 0.5
        if max(steps.values()) < 1e-3:
            break
    return best
