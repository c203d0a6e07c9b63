"""How well a config uses the machine: tokens/s, TFLOP/s a GPU, MFU, HFU, bubble, communication.

    python -m benchmarks.mfu [CONFIG.toml] [--section.key VALUE ...] [--steps N] [--json]
    torchrun --nproc-per-node 8 -m benchmarks.mfu CONFIG.toml --parallel.tp 8

The config is a pretraining's; its data is not read: tokens are made up, ``data.sequence_length`` a
row. ``communication_share`` is what a step's collectives take alone, bare, over the step's
time: more of it than shows may be hidden behind computation. The bubble is the share of a pipeline
step in which a process computes nothing. On a CPU the peak is that of a measured product.
"""

import json
import os
import sys
from typing import Any

from benchmarks.workload import Workload, make_workload
from megalite.cli import find_command, load_config
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import leave_process_group
from megalite.errors import MegaliteError

CONFIG, STEPS = "configs/small.toml", 5


def figures(workload: Workload, rounds: int) -> dict[str, Any]:
    """All figures of a workload, of its fastest step. Comm: every process calls this."""
    workload.step()  # makes what is made once
    best, metrics = min((workload.timed() for _ in range(rounds)), key=lambda one: one[0])
    rates = workload.speed.measure(workload.batches, best)
    bare, calls = workload.transport()
    row = {
        "ours_s": best,
        "tokens_per_s": rates["tokens"] / best,
        "tflops_per_gpu": rates["tflops_per_rank"],
        "mfu": rates["mfu"],
        "hfu": rates["hfu"],
        "memory_gib": workload.peak_gib(),
        "communication_s": bare,
        "communication_share": bare / best,
        "communication": calls,
    }
    return row | {name: metrics[name] for name in ("bubble", "bubble_theory") if name in metrics}


def measured(launch: Launch, words: list[str], steps: int) -> dict[str, Any]:
    """The figures of a config file and its overrides. Comm: every process calls this."""
    config, _ = load_config(find_command(["pretrain"])[0], words)
    row = {"case": f"mfu {words[0]}", "processes": launch.world_size}
    return row | figures(make_workload(config, launch), steps)


def taken(words: list[str], name: str, default: str) -> str:
    """Take an option and its value out of a command line."""
    if name not in words:
        return default
    place = words.index(name)
    value = words[place + 1]
    del words[place : place + 2]
    return value


def show(row: dict[str, Any], as_json: bool) -> None:
    """Print the figures, a line each or as one object."""
    if as_json:
        print(json.dumps(row), flush=True)
        return
    for name, value in row.items():
        if name == "communication":
            for kind, sizes in value.items():
                print(f"  {kind:20s} {sizes['calls']:6.0f} calls {sizes['mib']:10.2f} MiB")
        else:
            print(f"{name:20s} {value:.4g}" if isinstance(value, float) else f"{name:20s} {value}")


def main() -> int:
    """Run the benchmark on this process of the launch."""
    words = sys.argv[1:]
    if "--help" in words:
        print(__doc__)
        return 0
    as_json = "--json" in words
    words = [word for word in words if word != "--json"]
    steps = int(taken(words, "--steps", str(STEPS)))
    if not words or words[0].startswith("-"):
        words = [CONFIG, *words]
    launch = Launch.from_environment(os.environ)
    try:
        row = measured(launch, words, steps)
    except MegaliteError as error:
        sys.stderr.write(f"benchmarks.mfu: {error}\n")
        return error.exit_code
    if launch.rank == 0:
        show(row, as_json)
    leave_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
