"""The fastest layouts that fit: all layouts of some devices, timed, then weighed in that order."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megalite.distributed.mesh import ParallelConfig
from megalite.engine.layout import Demand, faults
from megalite.plan.constants import Constants
from megalite.plan.devices import Cluster
from megalite.plan.job import Job
from megalite.plan.memory import HEADROOM, Work, most
from megalite.plan.rows import Rows
from megalite.plan.stages import PRETRAIN, Stage, stage_memory, stage_seconds
from megalite.plan.step import Seconds

MICRO_BATCHES = (1, 2, 4, 8, 16, 32)
PASSES = ((False, "once"), (True, "once"), (False, "each"), (True, "each"))
CHUNKS = (2, 3, 4, 6)
TIE = 0.01  # of a step's time: layouts that the model can't tell apart
LOOKED_AT = 10  # of the fastest that fit, for ties


@dataclass(frozen=True)
class Found:
    """A layout that fits.

    Attributes:
        job: with its layout.
        seconds: of a step.
        total: GiB of the fullest stage.
    """

    job: Job
    seconds: Seconds
    total: float


@dataclass(frozen=True)
class Search:
    """What is searched for.

    Attributes:
        work: what is trained; its micro-batch size is searched too.
        parallel: the layout whose other values stay.
        cluster: where.
        constants: of its devices.
        stage: of training.
        seen: what the rows of a sequence see; None: those in front of them.
    """

    work: Work
    parallel: ParallelConfig
    cluster: Cluster
    constants: Constants
    stage: Stage = PRETRAIN
    seen: Rows | None = None

    def best(self, devices: int, count: int = 10) -> list[Found]:
        """The fastest layouts of so many devices that fit, the one to take first."""
        found: list[Found] = []
        if not self.has_room(devices):
            return found
        timed = [(self.seconds(job), job) for job in self.jobs(devices)]
        timed.sort(key=lambda one: one[0].total)
        for seconds, job in timed:
            total = self.total(job)
            if total <= self.limit:
                found.append(Found(job, seconds, total))
            if len(found) == max(count, LOOKED_AT):
                break
        if found:
            taken = to_take([one.seconds.total for one in found], [one.total for one in found])
            found.insert(0, found.pop(taken))
        return found[:count]

    @property
    def limit(self) -> float:
        """GiB of a device that a plan may fill."""
        return HEADROOM * self.cluster.device.memory_gib

    def total(self, job: Job) -> float:
        """GiB of the fullest process."""
        return most(stage_memory(self.stage, job.work, job.parallel)).total

    def has_room(self, devices: int) -> bool:
        """Whether a layout fits, of those that take least in each cut of so many devices."""
        return any(self.total(job) <= self.limit for job in self.jobs(devices, lean=True))

    def least_devices(self, start: int, doublings: int = 8) -> tuple[int, Found] | None:
        """The fewest devices, ``start`` doubled again and again, on which something fits."""
        for power in range(doublings + 1):
            found = self.best(start << power, 1)
            if found:
                return start << power, found[0]
        return None

    def seconds(self, job: Job) -> Seconds:
        """Of a step."""
        return stage_seconds(self.stage, job, self.cluster, self.constants)

    def jobs(self, devices: int, lean: bool = False) -> Iterator[Job]:
        """All layouts of so many devices that fit model and batch.

        Args:
            devices: how many.
            lean: of each cut only those that take least memory.
        """
        train = self.work.train
        for micro in MICRO_BATCHES[: 1 if lean else None]:
            work = dataclasses.replace(
                self.work, train=train.model_copy(update={"micro_batch_size": micro})
            )
            demand = Demand(work.model, devices, work.train.batch_sizes())
            for parallel in self.layouts(devices):
                if lean and not _is_lean(parallel):
                    continue
                if next(faults(demand, parallel), None) is None:
                    yield Job(work, parallel, seen=self.seen)

    def layouts(self, devices: int) -> Iterator[ParallelConfig]:
        """All layouts: tp within a node, shards of any size, each schedule and recompute."""
        for tp in _divisors(math.gcd(devices, self.cluster.per_node)):
            for pp in _divisors(devices // tp):
                copies = devices // (tp * pp)
                for shard in _divisors(copies):
                    sizes = {"tp": tp, "pp": pp, "shard": shard, "replicate": copies // shard}
                    for update in self._options(tp, pp, copies):
                        yield self.parallel.model_copy(update={**sizes, **update})

    def _options(self, tp: int, pp: int, copies: int) -> Iterator[dict[str, object]]:
        schedules = [("1f1b", 1)]
        if pp > 1:
            schedules += [("interleaved", chunks) for chunks in CHUNKS]
        for schedule, chunks in schedules:
            for rows in (False, True)[: 2 if tp > 1 else 1]:
                for recompute in ("none", "selective", "full"):
                    for drops, reduces in PASSES[: 4 if pp == 1 and copies > 1 else 1]:
                        yield {
                            "reduce_gradients": reduces,
                            "schedule": schedule,
                            "chunks_per_rank": chunks,
                            "sequence_parallel": rows,
                            "recompute": recompute,
                            "recompute_blocks": 0,
                            "encoder_stages": 0,
                            "reshard_after_forward": drops,
                        }


def _is_lean(parallel: ParallelConfig) -> bool:
    """Whether a layout drops and splits all that it can."""
    is_cut = parallel.sequence_parallel or parallel.tp == 1
    return is_cut and parallel.recompute == "full" and parallel.chunks_per_rank == 1


def to_take(seconds: Sequence[float], memory: Sequence[float]) -> int:
    """The number of the layout to take: of the fastest ones that tie, that with least memory."""
    limit = min(seconds) * (1 + TIE)
    near = [number for number, one in enumerate(seconds) if one <= limit]
    return min(near, key=lambda number: memory[number])


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def table(found: list[Found], stage: Stage = PRETRAIN) -> list[str]:
    """A line for each layout of a stage."""
    head = (
        f"{'tp':>3} {'pp':>3} {'shard':>6} {'replicate':>10} {'micro':>6} {'schedule':>14} "
        f"{'rows/tp':>8} {'recompute':>10} {'dropped':>8} {'reduced':>8} {'GiB':>6} "
        f"{'s a step':>9} {'tokens/s':>12}"
    )
    lines = [head]
    for one in found:
        parallel, train = one.job.parallel, one.job.work.train
        schedule = str(parallel.schedule) if parallel.pp > 1 else "-"
        if parallel.chunks_per_rank > 1:
            schedule += f" {parallel.chunks_per_rank}"
        marks = [
            "yes" if x else "no"
            for x in (parallel.sequence_parallel, parallel.reshard_after_forward)
        ]
        lines.append(
            f"{parallel.tp:>3} {parallel.pp:>3} {parallel.shard:>6} {parallel.replicate:>10} "
            f"{train.micro_batch_size:>6} {schedule:>14} {marks[0]:>8} {parallel.recompute:>10} "
            f"{marks[1]:>8} {parallel.reduce_gradients:>8} {one.total:>6.1f} "
            f"{one.seconds.total:>9.3f} {stage.job(one.job).tokens / one.seconds.total:>12,.0f}"
        )
    return lines
