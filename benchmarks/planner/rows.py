"""Published runs as jobs of the planner."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megalite.distributed.mesh import ParallelConfig
from megalite.models.config import ModelConfig
from megalite.models.part import Part
from megalite.plan.constants import Constants
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Engine, Job
from megalite.plan.memory import Work
from megalite.plan.step import Seconds, step_seconds
from megalite.training.config import TrainConfig

FILE = Path(__file__).with_name("runs.csv")

CLUSTERS = {  # network and adapters of a node
    "selene": ("ib-200", 8),
    "jeanzay": ("omni-path-100", 4),
    "jeanzay-v100": ("omni-path-100", 4),
    "mosaic-a100": ("ib-200", 8),
    "mosaic-h100": ("ib-400", 8),
    "vtrain": ("ib-200", 4),
}
WAITING = ("jeanzay", "jeanzay-v100")
"""Where each kernel was waited for: with more than 160 devices runs hung without
``CUDA_LAUNCH_BLOCKING=1`` (bigscience tr11-176B-ml/chronicles-prequel.md@9e64ede)."""
DEVICE = {
    "a100-80": "a100-80gb",
    "a100-40": "a100-40gb",
    "h100-80": "h100-80gb",
    "v100-32": "v100-32gb",
}


@dataclass(frozen=True)
class Row:
    """A published run.

    Attributes:
        name: of the row.
        group: runs of one source.
        split: fit, held or mem.
        kind: of device, by its constants.
        seconds: published, of a step; 0: none.
        memory_gb: published, of the fullest device; 0: none.
        fits: whether it ran.
        values: all columns.
    """

    name: str
    group: str
    split: str
    kind: str
    seconds: float
    memory_gb: float
    fits: bool
    values: dict[str, str]

    def number(self, key: str) -> float:
        """A column's number; 0 where it is empty."""
        return float(self.values[key] or 0)

    @property
    def cluster(self) -> Cluster:
        """Where it ran."""
        network, adapters = CLUSTERS[self.values["cluster"]]
        return Cluster(DEVICES[DEVICE[self.values["gpu"]]], NETWORKS[network], 8, adapters)


@cache
def rows() -> tuple[Row, ...]:
    """All published runs."""
    with FILE.open(encoding="utf-8", newline="") as file:
        return tuple(_row(values) for values in csv.DictReader(file))


def _row(values: dict[str, str]) -> Row:
    device = DEVICES[DEVICE[values["gpu"]]]
    return Row(
        name=values["id"],
        group=values["group"],
        split=values["split"],
        kind=device.kind,
        seconds=float(values["iter_s"] or 0),
        memory_gb=float(values["mem_gb"] or 0),
        fits=values["fits"] == "1",
        values=values,
    )


def engine_of(row: Row) -> Engine:
    """How the engine of a run works."""
    name, zero = row.values["engine"], int(row.number("zero"))
    return Engine(
        fused_attention=bool(row.number("flash")),
        sharded="parameters" if zero >= 2 else ("optimizer" if zero else "nothing"),
        gradient_bytes=row.number("grad_bytes"),
        reduces_each=name == "fsdp",
        cuts_sends=True,
        hides_tp=name == "meg22",
        launches_ahead=row.values["cluster"] not in WAITING,
    )


@cache
def job_of(row_name: str) -> Job:
    """A run as a job."""
    row = next(one for one in rows() if one.name == row_name)
    at = row.number
    layers, tp, pp, dp = (int(at(key)) for key in ("L", "tp", "pp", "dp"))
    model = ModelConfig(
        vocab_size=int(at("V")),
        hidden_size=int(at("h")),
        num_layers=layers,
        num_heads=int(at("heads")),
        num_kv_heads=int(at("kv")),
        ffn_size=int(at("ffn")),
        gated=bool(at("glu")),
        activation="gelu",
        norm="layer_norm",
        position="learned",
        max_positions=int(at("s")),
    )
    chunks = int(at("v")) or 1
    is_sharded = int(at("zero")) >= 2
    parallel: dict[str, Any] = {
        "tp": tp,
        "pp": pp,
        "shard": dp if is_sharded else 1,
        "replicate": 1 if is_sharded else dp,
        "chunks_per_rank": chunks,
        "schedule": "interleaved" if chunks > 1 else "1f1b",
        "sequence_parallel": bool(at("sp")),
        "recompute": row.values["recompute"],
        "reshard_after_forward": int(at("zero")) == 3,
    }
    train = TrainConfig(
        global_batch_size=int(at("gbs")), micro_batch_size=int(at("mbs")), precision="bf16"
    )
    cut = tuple(_cut(layers, pp * chunks, int(at("blocks_max"))))
    work = Work(model, train, int(at("s")))
    return Job(work, ParallelConfig(**parallel), engine_of(row), cut=cut)


def _cut(layers: int, count: int, longest: int) -> list[Part]:
    """Even parts, or parts of the longest from the first on, as Megatron cuts.

    Where two blocks more would make all parts as long as the longest, embedding and head count as
    one each.
    """
    ends = [round(layers * (number + 1) / count) for number in range(count)]
    if longest:
        is_even = count * longest == layers + 2
        ends = [longest * (number + 1) - is_even for number in range(count)]
        ends = [min(end, layers - (count - n - 1)) for n, end in enumerate(ends)]
    return [
        Part(number, count, (0, 0), (first, last))
        for number, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True))
    ]


def predicted(row: Row, constants: Constants) -> Seconds:
    """A step of a run as the planner has it."""
    return step_seconds(job_of(row.name), row.cluster, constants)


FAMILY = ("cluster", "L", "h", "heads", "gpus", "gbs", "s", "recompute")


def families(found: Sequence[Row], *more: str) -> dict[str, list[Row]]:
    """Layouts of one model, batch and number of devices in one source, where there are four.

    Args:
        found: rows.
        more: columns that must be alike too.
    """
    groups: dict[str, list[Row]] = {}
    for row in found:
        name = row.group + " " + " ".join(f"{key} {row.values[key]}" for key in (*FAMILY, *more))
        groups.setdefault(name, []).append(row)
    return {n: g for n, g in groups.items() if len({r.seconds for r in g}) > 3}
