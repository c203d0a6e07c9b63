"""Strong and weak scaling over the layouts that this machine's cores can run.

    python -m benchmarks.scaling [--processes 2] [--kind strong] [--rounds 3] [--json]

The model is train_step's LLaMA. Strong: the same global batch as the peer, one process with as many
threads as there are processes. Weak: the peer is one process with one thread and its share
of the batch. Ours are processes with one thread each. ``ratio`` is the share of the peer's
tokens/s (strong), or of a process's (weak), that is reached. ``fsdp`` keeps its
parameters gathered within a step, ``resharding`` gathers them for each pass. ``transport_s`` is the
floor of the transport: what the step's collectives take alone, nothing computed between them.
``at_floor`` is the ratio of a side that computes as fast as its peer and then waits so long: a
``ratio`` near it, or above it where they overlap, has nothing else to gain. Sides take turns.
"""

import argparse
import json
import os
import sys
from typing import Any

from benchmarks.duel import Side, play
from benchmarks.result import Result, show

BATCH, LENGTH, ROUNDS = 8, 256, 3


def layouts(count: int) -> dict[str, dict[str, Any]]:
    """What ``count`` processes can be: each kind alone, and pairs of kinds where they fit."""
    found: dict[str, dict[str, Any]] = {
        f"tp{count}": {"tp": count},
        f"tp{count} sequence": {"tp": count, "sequence_parallel": True},
        f"pp{count}": {"pp": count},
        f"fsdp{count}": {"shard": count},
        f"fsdp{count} resharding": {"shard": count, "reshard_after_forward": True},
        f"dp{count}": {"replicate": count},
    }
    if count % 2 == 0 and count > 2:
        half = count // 2
        found[f"tp2 pp{half}"] = {"tp": 2, "pp": half}
        found[f"tp2 fsdp{half}"] = {"tp": 2, "shard": half}
        found[f"pp2 dp{half}"] = {"pp": 2, "replicate": half}
    return found


def serve_layout(parallel: dict[str, Any], batch: int, threads: int) -> None:
    """Be one side: do a step for each line on the first process's standard input."""
    import torch.distributed as dist

    from benchmarks.models import CASES
    from benchmarks.workload import make_workload
    from megalite.distributed.launch import Launch
    from megalite.distributed.mesh import leave_process_group
    from megalite.stages.pretrain import PretrainConfig

    launch = Launch.from_environment(os.environ)
    sizes = {"global_batch_size": batch, "micro_batch_size": 1}
    config = PretrainConfig(
        model=CASES["llama"].ours(),
        parallel=parallel,
        train=sizes,
        data={"sequence_length": LENGTH},
        run={"threads": threads, "device": "cpu"},
    )
    work = make_workload(config, launch)
    work.step()
    bare, calls = work.transport()
    if launch.rank == 0:
        print(json.dumps({"transport_s": bare, "communication": calls}), flush=True)
    while True:
        told = [sys.stdin.readline() if launch.rank == 0 else ""]
        if launch.world_size > 1:
            dist.broadcast_object_list(told)
        if not told[0]:
            leave_process_group()
            return
        seconds, metrics = work.timed()
        bubble = {k: v for k, v in metrics.items() if k.startswith("bubble")}
        if launch.rank == 0:
            print(json.dumps({"seconds": seconds, **bubble}), flush=True)


def side(parallel: dict[str, Any], batch: int, threads: int, processes: int) -> Side:
    """Start one side's processes."""
    words = ["--side", json.dumps(parallel), "--batch", str(batch), "--threads", str(threads)]
    if processes == 1:
        return Side("benchmarks.scaling", words)
    launcher = ["--standalone", "--nproc-per-node", str(processes), "-m", "benchmarks.scaling"]
    return Side("torch.distributed.run", [*launcher, *words])


def compare(case: str, ours: Side, peer: Side, peer_name: str) -> Result:
    """The figures of one layout."""
    seconds, peer_s = ours.best("seconds"), peer.best("seconds")
    bare = ours.facts["transport_s"]
    more: dict[str, Any] = {
        "tokens_per_s": BATCH * LENGTH / seconds,
        "transport_s": bare,
        "at_floor": peer_s / (peer_s + bare),
    }
    for name in ("bubble", "bubble_theory"):
        if name in ours.rounds[0]:
            more[name] = ours.best(name)
    return Result(case, peer_name, seconds, peer_s, more)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kind", choices=("strong", "weak", "both"), default="both")
    parser.add_argument("--layouts", default="", help="names, separated by commas; all if empty")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=BATCH, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        serve_layout(json.loads(options.side), options.batch, options.threads)
        return
    count = options.processes
    if count < 2:
        raise SystemExit("benchmarks.scaling: needs two cores, or --processes 2")
    chosen = layouts(count)
    if options.layouts:
        chosen = {name: chosen[name] for name in options.layouts.split(",")}
    for name, parallel in chosen.items():
        for kind, threads, batch in (("strong", count, BATCH), ("weak", 1, BATCH // count)):
            if options.kind not in (kind, "both"):
                continue
            ours, peer = side(parallel, BATCH, 1, count), side({}, batch, threads, 1)
            play(ours, peer, options.rounds)
            peer_name = f"1 process, {threads} threads, batch {batch}"
            show(compare(f"{kind} {name}", ours, peer, peer_name), options.json)


if __name__ == "__main__":
    main()
