"""Constants of a type of device, from the rows that may set them."""

import dataclasses
import math
import statistics
from collections.abc import Sequence

from benchmarks.planner.rows import Row, families, predicted
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
    "launch_s": (1e-5, 1e-2),
    "collective_s": (1e-6, 1e-3),
    "hidden": (0.05, 1.0),
    "contention": (0.0001, 0.8),
    "straggling": (1e-4, 0.05),
}


ORDER = 0.25  # weight of the differences between layouts of one model


def distance(rows: Sequence[Row], constants: Constants) -> float:
    """How far predicted and published seconds are apart, and the layouts of one model.

    A mean over groups of rows of absolute logarithms, so that a few rows that the model misses
    don't bend it; and the mean of how far layouts of one model are from all of them being missed by
    one factor, so that what layouts differ in is fitted too.
    """
    off = {row.name: math.log(predicted(row, constants).total / row.seconds) for row in rows}
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(abs(off[row.name]))
    weights = {name: math.sqrt(len(errors)) for name, errors in groups.items()}
    total = sum(weights[name] * statistics.fmean(e) for name, e in groups.items())
    apart = []
    for family in families(rows, "note").values():
        middle = statistics.median(off[row.name] for row in family)
        apart += [abs(off[row.name] - middle) for row in family]
    return total / sum(weights.values()) + (ORDER * statistics.fmean(apart) if apart else 0.0)


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
