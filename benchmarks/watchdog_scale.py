"""The watchdog over 64 processes of a trivial step: who is named, how soon, and that all end.

    python -m benchmarks.watchdog_scale [--processes 64] [--timeout_s 120] [--json]

The processes are forked from one that has imported PyTorch, and are otherwise those of a run: a
learner of a tiny model whose gradients are summed over all of them, a heartbeat, gloo, the watchdog
and torchrun's kind of store. First a run without a fault, which nobody may take for one, then one
for each fault on purpose, at a random rank.
"""

import argparse
import json
import os
import random
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.utils.distributed import get_free_port

from benchmarks.watching import watchdog_s
from benchmarks.workload import batch_of
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.model import Task
from megalite.errors import MegaliteError
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.faults import Fault, FaultConfig
from megalite.training.learner import Learner, Learning
from megalite.training.watchdog.heartbeat import Heartbeat
from megalite.training.watchdog.timeouts import Timeouts
from megalite.training.watchdog.watchdog import Watchdog

KINDS = ("none", "kill", "stop", "raise", "hang", "skip")
STEPS, FAULT_STEP = 6, 4
SPARE_S = 30.0  # for stacks and the end of so many processes on a few cores
NAMED = re.compile(r"^megalite: rank (\d+) \(", re.MULTILINE)
MODEL = ModelConfig(
    vocab_size=64, hidden_size=32, num_layers=1, num_heads=2, ffn_size=48, max_positions=32
)


@dataclass
class Trial:
    """A fault among many processes, and what came of it.

    Attributes:
        kind: of the fault; none: a run without.
        rank: that it happens to.
        named: ranks that were named.
        named_s: seconds from the fault to its line on stderr; in a run without, of all steps.
        ended_s: seconds from the fault until all processes were gone.
        stacks: processes that wrote their stacks.
        watchdog_ms: processor time of a watchdog in a second of the clock, the middle process's.
        faults: what did not hold.
    """

    kind: str
    rank: int
    named: list[int] = field(default_factory=list)
    named_s: float = 0.0
    ended_s: float = 0.0
    stacks: int = 0
    watchdog_ms: float = 0.0
    faults: list[str] = field(default_factory=list)


def be_process(launch: Launch, trial: Trial, folder: Path, timeout_s: float) -> None:
    """Train for some steps, watched."""
    torch.set_num_threads(1)
    parallel = ParallelConfig(replicate=launch.world_size, timeout_s=timeout_s)
    mesh = build_mesh(launch, parallel, torch.device("cpu"))
    told = FaultConfig(kind=trial.kind, rank=trial.rank, step=FAULT_STEP)
    heartbeat = Heartbeat(Fault(told, launch))
    with Watchdog(launch, heartbeat, Timeouts.beside(timeout_s), folder / "faults"):
        model = build_model(MODEL, mesh, parallel, seed=0)
        train = TrainConfig(global_batch_size=launch.world_size)
        learning = Learning(train, OptimizerConfig(), ScheduleConfig(), 0)
        learner = Learner(model, mesh, learning, "model", heartbeat)
        batch = batch_of(MODEL, 1, 32, launch.rank)
        started = time.monotonic()
        for step in range(1, STEPS + 1):
            heartbeat.step = step
            learner.step([(batch, None)], lambda s: Task(Loss(s)), batch.num_targets, 0)
        spent_s = watchdog_s() / (time.monotonic() - started)
        (folder / f"spent-{launch.rank}").write_text(str(spent_s))
        heartbeat.enter("end")
    dist.destroy_process_group()


def fork(launch: Launch, trial: Trial, folder: Path, timeout_s: float) -> int:
    """Start a process; its output goes to a file of its own."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(folder / f"said-{launch.rank}", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        be_process(launch, trial, folder, timeout_s)
        code = 0
    except MegaliteError as error:  # as the command line says it
        if error.speaks:
            print(f"megalite: {error}", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait_for(pids: set[int], until: float, folder: Path, begun: dict[str, float]) -> list[int]:
    """Wait for processes; note when the fault happened and when a rank was named first."""
    codes: list[int] = []
    while pids and time.monotonic() < until:
        for pid in list(pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                codes.append(os.waitstatus_to_exitcode(status))
                pids.discard(pid)
        text = said(folder)
        if "fault on purpose" in text:
            begun.setdefault("fault", time.monotonic())
        if NAMED.search(text):
            begun.setdefault("named", time.monotonic())
        time.sleep(0.2)
    return codes


def said(folder: Path) -> str:
    """What all processes said on stderr."""
    return "\n".join(path.read_text() for path in folder.glob("said-*"))


def play(kind: str, options: argparse.Namespace, environment: Mapping[str, str]) -> Trial:
    """Run one trial."""
    count = options.processes
    trial = Trial(kind, random.Random(f"{kind} {options.seed}").randrange(count))
    port = get_free_port()
    os.environ.update(environment, MASTER_PORT=str(port))
    with tempfile.TemporaryDirectory() as name:
        folder, started = Path(name), time.monotonic()
        launches = (Launch(rank, count, rank, count) for rank in range(count))
        pids = {fork(one, trial, folder, options.timeout_s) for one in launches}
        store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
        begun: dict[str, float] = {}
        codes = wait_for(pids, started + 600 + 4 * options.timeout_s, folder, begun)
        ended = time.monotonic()
        for pid in pids:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        trial.faults += [f"{len(pids)} processes did not end"] * bool(pids)
        fault = begun.get("fault", started)
        trial.ended_s, trial.named_s = ended - fault, begun.get("named", ended) - fault
        judge(trial, codes, folder, options)
        del store
    return trial


def judge(trial: Trial, codes: list[int], folder: Path, options: argparse.Namespace) -> None:
    """Note what did not hold."""
    trial.named = sorted({int(rank) for rank in NAMED.findall(said(folder))})
    stacks = list(folder.glob("faults/rank-*.txt"))
    trial.stacks = sum(path.stat().st_size > 0 for path in stacks)
    spent = sorted(float(path.read_text()) for path in folder.glob("spent-*"))
    trial.watchdog_ms = 1e3 * spent[len(spent) // 2] if spent else 0.0
    if trial.kind == "none" and (any(codes) or trial.named or stacks):
        trial.faults.append(f"exit codes {sorted(set(codes))}, named {trial.named}")
    if trial.kind != "none":
        judge_fault(trial, codes, options)
    if trial.faults and options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / f"{trial.kind}.txt").write_text(said(folder))


def judge_fault(trial: Trial, codes: list[int], options: argparse.Namespace) -> None:
    """Note what did not hold of a fault."""
    if trial.named != [trial.rank]:
        trial.faults.append(f"named {trial.named}")
    if 0 in codes:
        trial.faults.append(f"{codes.count(0)} processes ended as if all were well")
    if trial.stacks < options.processes - 1:
        trial.faults.append(f"{trial.stacks} wrote their stacks")
    if trial.named_s > options.timeout_s + SPARE_S:
        trial.faults.append("it was named late")


def show(trial: Trial, as_json: bool) -> None:
    """Print one trial."""
    if as_json:
        print(json.dumps(asdict(trial)), flush=True)
        return
    came = "; ".join(trial.faults) or "ok"
    print(
        f"{trial.kind:6s} rank {trial.rank:3d}  named {trial.named} after {trial.named_s:5.1f} s  "
        f"all ended after {trial.ended_s:5.1f} s  {trial.stacks} stacks  "
        f"watchdog {trial.watchdog_ms:.2f} ms a second  {came}",
        flush=True,
    )


def main() -> int:
    """Run the trials; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--timeout_s", type=float, default=120.0, help="of collectives")
    parser.add_argument("--kinds", default=",".join(KINDS), help="separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="gets what the processes of a failure said")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    environment = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    trials = []
    for kind in options.kinds.split(","):
        trials.append(play(kind, options, environment))
        show(trials[-1], options.json)
    return int(any(trial.faults for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
