"""A training step of data parallelism on paper: launches, bytes, operations, where the time goes.

    python -m benchmarks.traffic [--gpu a100|v100] [--model llama-7b] [--top 12]

A micro-batch's forward and backward pass runs on the meta device, so that the operators that are
counted are those that run; FSDP2's and AdamW's passes over the parameters are counted by formula.
A product takes its operations at the rate that cuBLAS reaches, attention its pairs at that of its
kernel, everything else its bytes at the rate of memory, and nothing less than a launch. Attention's
backward pass has the share of the SMs that its schedule fills (benchmarks/schedule.py).
Communication is left out, and each step is queued before the device has done the one before it.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from benchmarks.ledger import Entry, Ledger
from benchmarks.schedule import SMS, Shape, uses, v100_use
from benchmarks.workload import batch_of
from megalite.distributed.mesh import Mesh
from megalite.engine.data_parallel import DataParallel
from megalite.engine.model import Task
from megalite.engine.whole import Whole
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.models.transformer import Transformer
from megalite.ops import RowIntervals
from megalite.training.metrics.flops import step_operations

RANKS = 8


@dataclass(frozen=True)
class Rates:
    """What a GPU reaches.

    Attributes:
        peak: operations a second by the data sheet, in 16 bits.
        product: of large products, as cuBLAS is measured.
        attention: of the forward kernel at H 128, half its lanes empty at 64.
        attention_backward: of the backward kernel when it fills the GPU.
        fill: share of the GPU that the backward kernel's blocks keep busy.
        memory: bytes a second.
        launch_s: the least that a kernel takes.
    """

    peak: float
    product: float
    attention: float
    attention_backward: float
    fill: Callable[[Shape, RowIntervals], float]
    memory: float
    launch_s: float = 3e-6


@cache
def a100_fill(shape: Shape, mask: RowIntervals) -> float:
    """Share of an A100's SMs that the backward kernel's blocks keep busy."""
    return uses(shape, mask, SMS["A100"])[0]


RATES = {
    "a100": Rates(312e12, 240e12, 130e12, 116e12, a100_fill, 1.75e12),
    "v100": Rates(125e12, 90e12, 45e12, 35e12, cache(v100_use), 0.78e12),
}


@dataclass(frozen=True)
class Case:
    """A model, and what a micro-batch and a step have of it."""

    model: str
    sequences: int
    length: int
    micro_batches: int


CASES = (
    Case("llama-7b", 2, 2048, 32),
    Case("bloom-7b1", 2, 2048, 32),
    Case("t5-11b", 8, 512, 32),
    Case("chatglm2-6b", 2, 2048, 32),
)
FSDP = {  # bytes a parameter: of a rank's whole model, and of its shard
    "FSDP2: gradients to fp32 and added": (10.0, 0.0),
    "FSDP2: copies around the collectives, a step": (18.0, 0.0),
    "clip and AdamW, a step": (0.0, 12.0 + 28.0),
}


def entries_of(config: ModelConfig, batch: Batch, dtype: torch.dtype) -> list[Entry]:
    """The launches of a micro-batch, forward and backward."""
    mesh = Mesh.single("meta")
    model = Whole([Transformer(config, mesh).to(dtype)], mesh, DataParallel())
    for parameter in model.parameters():  # as FSDP2's, which are gathered anew
        parameter.grad = None
    on_device = batch.to("meta")
    starts = [id(mask.start) for mask in _masks(on_device)]
    with Ledger(lambda start: _masks(batch)[starts.index(id(start))]) as ledger:
        model.forward_backward([(on_device, None)], Task(Loss(1.0)))
    return ledger.entries


def _masks(batch: Batch) -> list[RowIntervals]:
    encoder = [] if batch.encoder is None else [batch.encoder.mask]
    cross = [] if batch.cross is None else [batch.cross]
    return [batch.decoder.mask, *encoder, *cross]


def seconds_of(entry: Entry, rates: Rates) -> float:
    """What a launch takes."""
    rate = rates.product
    if entry.name.endswith("attention"):
        rate = rates.attention
    elif entry.name.endswith("attention_backward"):
        assert entry.backward is not None
        rate = rates.attention_backward * rates.fill(*entry.backward)
    return max(entry.flops / rate, entry.bytes_ / rates.memory, rates.launch_s)


def parameters_of(config: ModelConfig) -> int:
    """Parameters of a model."""
    return sum(p.numel() for p in Transformer(config, Mesh.single("meta")).parameters())


def times_of(case: Case, entries: list[Entry], count: int, rates: Rates) -> dict[str, float]:
    """Seconds of a micro-batch by operator, the step's own work shared out over micro-batches."""
    seconds: dict[str, float] = defaultdict(float)
    for entry in entries:
        seconds[entry.name] += seconds_of(entry, rates)
    for name, (whole, shard) in FSDP.items():
        moved = count * (whole + shard / RANKS)
        if name.endswith("a step"):
            moved /= case.micro_batches
        elif case.micro_batches > 1:  # the first is only made fp32
            moved -= 4.0 * count / case.micro_batches
        seconds[name] = moved / rates.memory
    return dict(seconds)


def report(case: Case, gpu: str, top: int) -> float:
    """Print a case's table; give its MFU."""
    config, rates = ModelConfig(preset=case.model), RATES[gpu]
    config = config.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    batch = batch_of(config, case.sequences, case.length)
    dtype = torch.bfloat16 if gpu == "a100" else torch.float16
    entries = entries_of(config, batch, dtype)
    count = parameters_of(config)
    seconds = times_of(case, entries, count, rates)
    whole = sum(seconds.values())
    mfu = step_operations(config, batch).model / whole / rates.peak
    moved, flops = sum(e.bytes_ for e in entries), sum(e.flops for e in entries)
    print(
        f"\n{case.model}, {RANKS} x {gpu}, {case.micro_batches} micro-batches of "
        f"{case.sequences} x {case.length} tokens: {len(entries)} launches, {moved / 1e9:.0f} GB, "
        f"{flops / 1e12:.0f} TFLOP and {whole * 1e3:.0f} ms a micro-batch, MFU {mfu:.1%}"
    )
    counted: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        counted[entry.name].append(entry)
    for name in sorted(seconds, key=lambda name: -seconds[name])[:top]:
        own = counted[name]
        gigabytes = sum(entry.bytes_ for entry in own) / 1e9
        print(
            f"  {name:46s} {len(own):6d} launches {gigabytes:8.1f} GB "
            f"{seconds[name] * 1e3:8.1f} ms {seconds[name] / whole:6.1%}"
        )
    return mfu


def main() -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gpu", choices=tuple(RATES), default="a100")
    parser.add_argument("--model", choices=[case.model for case in CASES], default=None)
    parser.add_argument("--top", type=int, default=14, help="operators that take the most")
    options = parser.parse_args()
    for case in CASES:
        if options.model in (None, case.model):
            report(case, options.gpu, options.top)


if __name__ == "__main__":
    main()
