"""What would make a layout fit a device: single changes, each tried."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from megalite.distributed.mesh import ParallelConfig
from megalite.engine.layout import Demand, faults
from megalite.plan.memory import Work, data_parallel, most
from megalite.plan.stages import PRETRAIN, Stage, stage_memory

LEAST_GAIN = 0.01  # of a stage's memory: a change that saves less is no advice
MOST_TP = 8  # processes of a node
MOST_CHANGES = 4


@dataclass(frozen=True)
class Change:
    """One change of a run.

    Attributes:
        words: the options that make it.
        work: what is trained after it.
        parallel: the layout after it.
        total: GiB of the fullest stage after it.
    """

    words: str
    work: Work
    parallel: ParallelConfig
    total: float


def devices(parallel: ParallelConfig) -> int:
    """Processes of a layout; ``replicate = 0`` counts as one copy."""
    return parallel.pp * parallel.tp * data_parallel(parallel)


def changes(
    work: Work, parallel: ParallelConfig, limit: float, stage: Stage = PRETRAIN
) -> list[Change]:
    """Single changes of a run that save memory, those that bring it under ``limit`` GiB first.

    Among those that fit the ones that need no more devices come first.
    """
    before, found = most(stage_memory(stage, work, parallel)).total, []
    for words, other_work, other in _candidates(work, parallel):
        demand = Demand(work.model, devices(other), other_work.train.batch_sizes())
        if next(faults(demand, other), None) is not None:
            continue
        total = most(stage_memory(stage, other_work, other)).total
        if total < before * (1 - LEAST_GAIN):
            found.append(Change(words, other_work, other, total))
    now = devices(parallel)

    def order(change: Change) -> tuple[bool, bool, float]:
        return change.total > limit, devices(change.parallel) > now, change.total

    return sorted(found, key=order)[:MOST_CHANGES]


def _candidates(work: Work, parallel: ParallelConfig) -> Iterator[tuple[str, Work, ParallelConfig]]:
    train = work.train
    for words, update in _layout_changes(parallel):
        yield words, work, parallel.model_copy(update=update)
    for size in {1, train.micro_batch_size // 2} - {0, train.micro_batch_size}:
        fewer = train.model_copy(update={"micro_batch_size": size})
        yield f"--train.micro_batch_size {size}", replace(work, train=fewer), parallel


def _layout_changes(parallel: ParallelConfig) -> Iterator[tuple[str, dict[str, object]]]:
    def option(name: str, value: object) -> tuple[str, dict[str, object]]:
        text = str(value).lower() if isinstance(value, bool) else value
        return f"--parallel.{name} {text}", {name: value}

    kinds = ("none", "selective", "full")
    for kind in kinds[kinds.index(parallel.recompute) + 1 :]:
        yield option("recompute", kind)
    if parallel.recompute_blocks:
        yield option("recompute_blocks", 0)
    if parallel.tp > 1 and not parallel.sequence_parallel:
        yield option("sequence_parallel", True)
    if data_parallel(parallel) > 1 and parallel.pp == 1:
        yield option("reshard_after_forward", True)
        yield option("reduce_gradients", "each")
    if parallel.pp > 1 and parallel.schedule == "gpipe":
        yield option("schedule", "1f1b")
    if parallel.replicate > 1:
        words = f"--parallel.replicate 1 --parallel.shard {data_parallel(parallel)}"
        yield words, {"replicate": 1, "shard": data_parallel(parallel)}
    for factor in (2, 4, 8):
        yield option("shard", parallel.shard * factor)
        yield option("pp", parallel.pp * factor)
        if parallel.tp * factor <= MOST_TP:
            yield option("tp", parallel.tp * factor)
