"""What a whole run takes: days, money, energy, failures."""

import math
from dataclasses import dataclass

import torch

from megalite.engine.recompute import recomputed_blocks
from megalite.models.batch import Batch, Stream
from megalite.ops.mask import causal, full
from megalite.plan.job import Job
from megalite.plan.kernels import Kernels
from megalite.plan.step import Seconds
from megalite.training.metrics.flops import Operations, step_operations

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
    """

    price: float
    watts: float
    failures: float
    save_s: float
    per_node: int


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


def operations(job: Job) -> Operations:
    """Floating-point operations of a step, counted as a run's metrics count them."""
    work = job.work
    length, encoder_length = work.sequence_length, work.encoder_length
    positions = torch.arange(length, dtype=torch.int32)[None]
    tokens = torch.zeros(1, length, dtype=torch.int64)
    stream = cross = None
    if encoder_length:
        source = torch.zeros(1, encoder_length, dtype=torch.int64)
        rows = torch.arange(encoder_length, dtype=torch.int32)[None]
        stream = Stream(source, rows, full(1, encoder_length, encoder_length))
        cross = full(1, length, encoder_length)
    decoder = Stream(tokens, positions, causal(1, length))
    batch = Batch(decoder, tokens, torch.zeros(1, dtype=torch.int64), encoder=stream, cross=cross)
    one = step_operations(work.model, batch, recomputed_blocks(work.model, job.parallel))
    samples = work.train.global_batch_size
    return Operations(samples * one.model, samples * one.hardware)


def outlook(job: Job, seconds: Seconds, kernels: Kernels, terms: Terms) -> Outlook:
    """What a run of a job takes.

    The interval between checkpoints is the square root of twice the time of a save times that
    between failures; time is lost to saves, to half an interval a failure and to starting again.
    While the batch grows, a sample is taken to cost as much as afterwards.

    Source: Daly 2006, doi:10.1016/j.future.2004.11.016.
    """
    done, total = operations(job), seconds.total
    per_device = job.devices * total
    train = job.work.train
    full_steps = train.ramp.after(train.steps) / train.global_batch_size
    days = full_steps * total / DAY_S
    nodes = math.ceil(job.devices / terms.per_node)
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
        gpu_hours=days * 24 * job.devices,
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
        f"{found.tokens_per_s:,.0f} tokens/s; {found.tflops:.0f} TFLOP/s a device without "
        f"recompute: MFU {found.mfu:.1%}; with what is computed again: HFU {found.hfu:.1%}",
        f"{found.days:.3g} days, {found.gpu_hours:,.0f} GPU hours for {job.work.train.steps:,} "
        "steps",
    ]
    if terms.price:
        cost = terms.price * found.gpu_hours / found.goodput
        shown.append(f"cost {cost:,.0f} at {terms.price:g} a GPU hour, lost time included")
    if terms.watts:
        energy = terms.watts * found.gpu_hours / found.goodput / 1e6
        shown.append(f"energy {energy:,.3g} MWh at {terms.watts:g} W a device")
    if math.isfinite(found.interval_s):
        shown.append(
            f"{found.failures:.3g} failures expected at {terms.failures:g} a 1000 node-days; a "
            f"checkpoint every {found.interval_s / 60:.3g} min "
            f"({found.interval_s / parts.total:,.0f} steps) loses least; goodput "
            f"{found.goodput:.1%}: {found.days / found.goodput:.3g} days in all"
        )
    return shown
