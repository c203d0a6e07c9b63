"""The planner on this machine's cores: calibrated by one layout, it predicts the others.

    python -m benchmarks.planner.on_cpu [--rounds 5] [--calibrate 1]

The model is that of benchmarks.scaling. Each layout is a process or two of one thread, and all take
turns within each round, so that they meet the same load. The least step of each counts. The steps
of ``--calibrate`` go through ``megalite plan --calibrate``'s own code; the others are predicted.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.duel import Side
from benchmarks.models import CASES
from benchmarks.scaling import BATCH, LENGTH, side
from megalite.distributed.mesh import ParallelConfig
from megalite.plan.calibrate import FIRST_STEPS, calibrated
from megalite.plan.constants import Constants
from megalite.plan.devices import CPU, NETWORKS, Cluster
from megalite.plan.job import Job
from megalite.plan.memory import Work
from megalite.plan.step import Seconds, step_seconds
from megalite.training.config import TrainConfig

LAYOUTS: dict[str, dict[str, Any]] = {
    "1": {},
    "tp2": {"tp": 2},
    "pp2": {"pp": 2},
    "fsdp2": {"shard": 2},
}
NEAR = 0.2


def measured(rounds: int) -> dict[str, float]:
    """The least seconds of a step of each layout."""
    sides: dict[str, Side] = {}
    for name, layout in LAYOUTS.items():
        sides[name] = side(layout, BATCH, 1, 2 if layout else 1)
    for _ in range(rounds):
        for one in sides.values():
            one.play()
    for one in sides.values():
        one.end()
    return {name: one.best("seconds") for name, one in sides.items()}


def constants_by(name: str, seconds: float) -> Constants:
    """What ``megalite plan --calibrate`` makes of a run of a layout with steps so long."""
    job = job_of(name)
    tflops = job.operations.model / job.devices / seconds / 1e12
    row = json.dumps({"step_s": seconds, "tflops_per_rank": tflops})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        path.write_text(f"{row}\n" * (FIRST_STEPS + 1), encoding="utf-8")
        return calibrated(Path(folder), job, CLUSTER, Constants()).constants


CLUSTER = Cluster(CPU, NETWORKS["ib-100"])


def job_of(name: str) -> Job:
    """A layout as a job."""
    train = TrainConfig(global_batch_size=BATCH, micro_batch_size=1, precision="fp32")
    return Job(Work(CASES["llama"].ours(), train, LENGTH), ParallelConfig(**LAYOUTS[name]))


def predictions(found: dict[str, float], by: str) -> dict[str, Seconds]:
    """Each layout's step by what one layout's seconds set."""
    constants = constants_by(by, found[by])
    return {name: step_seconds(job_of(name), CLUSTER, constants) for name in found}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calibrate", choices=list(LAYOUTS), default="1")
    options = parser.parse_args()
    found = measured(options.rounds)
    for name, told in predictions(found, options.calibrate).items():
        seconds = found[name]
        off = told.total / seconds - 1
        mark = "calibrated by" if name == options.calibrate else f"{off:+.0%}"
        near = "" if abs(off) <= NEAR else f"  beyond {NEAR:.0%}"
        parts = " ".join(f"{part} {value:.3g}" for part, value in vars(told).items() if value > 0)
        print(f"{name:<6} {seconds:7.3f} s, predicted {told.total:7.3f} s: {mark}{near}  ({parts})")


if __name__ == "__main__":
    main()
