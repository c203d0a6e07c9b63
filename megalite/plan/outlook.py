"""What a whole run takes: days, money, energy, failures."""

import math
from dataclasses import dataclass

from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.step import Seconds
from megalite.training.metrics.flops import Operations

DAY_S = 86400.0
RESTART_S = 600.0  # from a failure to the first step after it


@dataclass(frozen=True)
class Terms:
    """What a run pays and meets.

    Attributes:
        price: of a device, an hour; 0: not asked.
        watts: of a device with its share of node and cooling; 0: not asked.
        failures: of a thousand nodes a day.
        save_s: seconds that a checkpoint stops training for.
        per_node: devices of a node.
        beside: devices beside those that learn.
    """

    price: float
    watts: float
    failures: float
    save_s: float
    per_node: int
    beside: int = 0


@dataclass(frozen=True)
class Outlook:
    """A run by the planner.

    Attributes:
        seconds: of a step.
        tokens_per_s: of all devices.
        tflops: that the model needs, of a device and second, in 10^12.
        mfu: the share of the peak of that.
        hfu: the share of the peak of what is computed, recompute too.
        days: of training alone.
        gpu_hours: of training alone.
        failures: that stop the run, over those days.
        interval_s: between checkpoints, at which least is lost.
        goodput: the share of time in which steps are done that last.
    """

    seconds: Seconds
    tokens_per_s: float
    tflops: float
    mfu: float
    hfu: float
    days: float
    gpu_hours: float
    failures: float
    interval_s: float
    goodput: float


def outlook(
    job: Job, seconds: Seconds, done: Operations, kernels: Kernels, terms: Terms
) -> Outlook:
    """What a run of a job takes, whose steps take so long and do so much.

    The interval between checkpoints is the square root of twice the time of a save times that
    between failures; time is lost to saves, to half an interval a failure and to starting again.
    While the batch grows, a sample is taken to cost as much as afterwards.

    Source: Daly 2006, doi:10.1016/j.future.2004.11.016.
    """
    total = seconds.total
    devices = job.devices + terms.beside
    per_device = devices * total
    days = job.work.train.full_steps * total / DAY_S
    nodes = math.ceil(devices / terms.per_node)
    rate = terms.failures * nodes / 1000.0 / DAY_S  # a second
    interval = math.sqrt(2.0 * terms.save_s / rate) if rate else math.inf
    lost = terms.save_s / interval + rate * (interval / 2 + RESTART_S) if rate else 0.0
    return Outlook(
        seconds=seconds,
        tokens_per_s=job.tokens / total,
        tflops=done.model / per_device / 1e12,
        mfu=done.model / per_device / kernels.peak,
        hfu=done.hardware / per_device / kernels.peak,
        days=days,
        gpu_hours=days * 24 * devices,
        failures=rate * days * DAY_S,
        interval_s=interval,
        goodput=1.0 / (1.0 + lost),
    )


def lines(found: Outlook, job: Job, terms: Terms) -> list[str]:
    """What is printed of it."""
    parts = found.seconds
    named = [
        ("compute", parts.compute),
        ("recompute", parts.recompute),
        ("launches", parts.host),
        ("tp", parts.tp),
        ("pp bubble", parts.bubble),
        ("pp sends", parts.sends),
        ("dp", parts.dp),
        ("optimizer", parts.optimizer),
        ("waiting for the slowest node", parts.straggling),
    ]
    split = ", ".join(f"{name} {value:.3g}" for name, value in named if value > 0)
    shown = [
        f"{parts.total:.3g} s a step: {split}",
        f"{found.tokens_per_s:,.0f} tokens/s; {found.tflops:.3g} TFLOP/s a device without "
        f"recompute: MFU {found.mfu:.1%}; with what is computed again: HFU {found.hfu:.1%}",
        f"{found.days:.3g} days, {_told(found.gpu_hours)} GPU hours for {job.work.train.steps:,} "
        "steps",
    ]
    if terms.price:
        cost = terms.price * found.gpu_hours / found.goodput
        shown.append(f"cost {_told(cost)} at {terms.price:g} a GPU hour, lost time included")
    if terms.watts:
        energy = terms.watts * found.gpu_hours / found.goodput / 1e6
        shown.append(f"energy {_told(energy)} MWh at {terms.watts:g} W a device")
    if math.isfinite(found.interval_s):
        shown.append(
            f"{found.failures:.3g} failures expected at {terms.failures:g} a 1000 node-days; a "
            f"checkpoint every {found.interval_s / 60:.3g} min "
            f"({found.interval_s / parts.total:,.0f} steps) loses least; goodput "
            f"{found.goodput:.1%}: {found.days / found.goodput:.3g} days in all"
        )
    return shown


def _told(number: float) -> str:
    """A number without a fraction where it is large, else with three figures."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
