"""What a step costs that is watched: with all watching on and with none, step by step in turns.

    python -m benchmarks.watching [--processes 2] [--rounds 12] [--small_rounds 400] [--json]

Two trainers of one model stand in each process, and every step of the one is followed by one of the
other. On: the watchdog, the stopwatch, spikes, the comparison of all processes' paces and that of
copies; the steps that compare are told apart, and count as often as they are due at the default
intervals. Off: none of these. What is compared is processor time, of all threads, so that other
programs on the machine count less; of all turns the middle difference is taken. Two processes are
``replicate 2``, in which every tensor has a copy.

The model is train_step's LLaMA. A loaded machine's processor time of its steps varies by more than
watching takes, so what doesn't depend on the model (``base_us``: of each step, ``paces_us``: of a
comparison of paces, ``watchdog_us``: of its thread in a step) is taken from as many more turns of a
model with steps of milliseconds; ``copies_us`` is a comparison of LLaMA's copies. ``whole`` is
what all that makes of a LLaMA step, in percent; ``direct`` is the difference of LLaMA's own turns,
in percent, with ``error``, its standard error. A process alone has no copies and no watchdog.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.result import Result, show

SIDES = ("off", "on")
PACES_EVERY, COPIES_EVERY = 5, 3  # of the bench, so that both are met often
TIMEOUT_S = 600.0
STALL_S = 36_000.0  # the main thread waits for the two that take turns
WINDOW_STEPS = 128
MEDIAN_ERROR = 0.93  # a median's standard error, of a quartile distance over a root of the count


class OverError(Exception):
    """The last turn is done."""


class Turns:
    """Two threads that take turns, one step each.

    Attributes:
        seconds: of processors that each side's steps took.
        watchdog_share: what the watchdog's thread took beside all of them.
        copies: seconds that each comparison of copies took.
    """

    def __init__(self, steps: int) -> None:
        """Give the first turn to the first side."""
        self.seconds: dict[str, list[float]] = {side: [] for side in SIDES}
        self.watchdog_share, self._steps = 0.0, steps
        self.copies: list[float] = []
        self._may = {side: threading.Semaphore(int(side == SIDES[0])) for side in SIDES}

    def items(self, side: str, item: Any) -> Iterator[Any]:
        """The same item for each step of a side, when it is its turn."""
        other = SIDES[1 - SIDES.index(side)]
        for number in range(self._steps + 1):
            self._may[side].acquire()
            before = time.process_time() - watchdog_s()
            yield item
            if number:  # the first step makes the optimizer's state
                self.seconds[side].append(time.process_time() - watchdog_s() - before)
            self._may[other].release()
        raise OverError


def watchdog_s() -> float:
    """Processor time of the watchdog's thread so far."""
    return sum(
        time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
        for thread in threading.enumerate()
        if thread.name == "watchdog" and thread.ident
    )


def differences(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Seconds that watching takes of a step, by what the step has of it; and their error."""
    kinds: dict[str, list[float]] = {"base": [], "paces": []}
    pairs = zip(seconds["off"], seconds["on"], strict=True)
    for number, (off, on) in enumerate(pairs, 2):
        if number % COPIES_EVERY:
            kinds["base" if number % PACES_EVERY else "paces"].append(on - off)
    base, paces = (statistics.median(found) for found in kinds.values())
    low, _, high = statistics.quantiles(kinds["base"], n=4)
    error = MEDIAN_ERROR * (high - low) / len(kinds["base"]) ** 0.5
    return {"base": base, "paces": paces - base, "error": error}


def figures(small: Turns, large: Turns) -> dict[str, float]:
    """What watching costs the large model's step, in microseconds and in percent."""
    from megalite.training.config import DriftConfig
    from megalite.training.stragglers import StragglerConfig

    step_s = min(large.seconds["off"])
    few, own = differences(small.seconds), differences(large.seconds)
    watchdog = large.watchdog_share * step_s
    each = few["base"] + few["paces"] / StragglerConfig().every + watchdog
    copies = statistics.median(large.copies)
    whole = each + copies / DriftConfig().every
    parts = {"base": few["base"], "paces": few["paces"], "watchdog": watchdog}
    parts["copies"] = copies
    shares = {"whole": whole, "direct": own["base"], "error": own["error"]}
    told = {f"{name}_us": 1e6 * part for name, part in parts.items()}
    told |= {name: 100 * part / step_s for name, part in shares.items()}
    return told | {"off_s": step_s, "on_s": step_s + whole}


def serve(options: argparse.Namespace) -> None:
    """Be one process: take all turns; the first process prints the figures."""
    import torch

    from megalite.distributed.launch import Launch
    from megalite.distributed.mesh import ParallelConfig, build_mesh, leave_process_group

    launch = Launch.from_environment(os.environ)
    torch.set_num_threads(1)
    parallel = ParallelConfig(replicate=launch.world_size, timeout_s=TIMEOUT_S)
    mesh = build_mesh(launch, parallel, torch.device("cpu"))
    place = Place(launch, mesh, parallel)
    small = take_turns(place, options.small_rounds, small_case())
    large = take_turns(place, options.rounds, large_case())
    if launch.rank == 0:
        print(json.dumps(figures(small, large)), flush=True)
    leave_process_group()


@dataclass(frozen=True)
class Place:
    """A process and its mesh."""

    launch: Any
    mesh: Any
    parallel: Any


@dataclass(frozen=True)
class Case:
    """A model and the one batch that each process learns."""

    config: Any
    batch: Any


def small_case() -> Case:
    """A model whose step takes milliseconds."""
    from benchmarks.workload import batch_of
    from megalite.models.config import ModelConfig

    sizes = {"vocab_size": 64, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    config = ModelConfig(**sizes, ffn_size=48, max_positions=32)
    return Case(config, batch_of(config, 2, 32))


def large_case() -> Case:
    """The model and the batch of benchmarks.train_step."""
    from benchmarks.models import CASES
    from benchmarks.train_step import BATCH, LENGTH

    (batch,) = CASES["llama"].batches(BATCH, LENGTH)
    return Case(CASES["llama"].ours(), batch)


def take_turns(place: Place, rounds: int, case: Case) -> Turns:
    """Let both sides do so many steps, after a first."""
    turns = Turns(rounds)
    with tempfile.TemporaryDirectory() as folder:
        sides = {side: make_side(side, place, Path(folder), case) for side in SIDES}
        _time_copies(sides["on"][0].args[0], turns.copies)
        watchdog = make_watchdog(place.launch, sides["on"][1], Path(folder))
        threads = [threading.Thread(target=run, args=(turns, s, sides[s][0])) for s in SIDES]
        before = time.process_time()
        with watchdog:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            own = watchdog_s()
            turns.watchdog_share = own / (time.process_time() - before - own)
    return turns


def run(turns: Turns, side: str, fit: Callable[[Iterator[Any]], None]) -> None:
    """Let a side's trainer run in this thread until the last turn is done."""
    import torch

    torch.set_num_threads(1)
    with suppress(OverError):
        fit(turns.items(side, None))


def make_watchdog(launch: Any, heartbeat: Any, folder: Path) -> Any:
    """The watchdog over a heartbeat; it looks as often as in a run with the default timeout."""
    from megalite.training.watchdog.timeouts import Timeouts
    from megalite.training.watchdog.watchdog import Watchdog

    return Watchdog(launch, heartbeat, Timeouts(STALL_S), folder / "faults")


def make_side(side: str, place: Place, folder: Path, case: Case) -> Any:
    """A trainer's ``fit``, given its items, and its heartbeat."""
    from megalite.distributed.sums import Counts
    from megalite.engine.build import build_model
    from megalite.engine.model import Task
    from megalite.models.outputs import Loss
    from megalite.training.checkpoint.manager import CheckpointManager
    from megalite.training.config import OptimizerConfig, ScheduleConfig
    from megalite.training.learner import TARGETS, Learner, Learning
    from megalite.training.metrics.run_log import RunLog
    from megalite.training.progress import Progress, StepResult
    from megalite.training.trainer import Trainer
    from megalite.training.watchdog.heartbeat import Heartbeat

    mesh, items = place.mesh, [(case.batch, None)]
    train = config_of(side, len(case.batch.labels) * mesh.world.size)
    model = build_model(case.config, mesh, place.parallel, seed=0)
    heartbeat = Heartbeat()
    if side == "off":
        heartbeat.stopwatch = no_stopwatch()
    learning = Learning(train, OptimizerConfig(), ScheduleConfig(), 0)
    learner = Learner(model, mesh, learning, "model", heartbeat)
    log = RunLog(folder / side, mesh.world.rank == 0, train.steps)
    trainer = Trainer([learner], log, CheckpointManager(folder / side / "checkpoints"), 0)
    _fill_window(trainer)
    targets = case.batch.num_targets

    def work(_: None, progress: Progress) -> StepResult:
        counts = Counts({TARGETS: targets}, mesh.dp, mesh.device)
        update = learner.begin(items, lambda s: Task(Loss(s)), counts, progress.consumed_samples)
        return StepResult(lambda _: update.metrics())

    return partial(_fit, trainer, work), heartbeat


def _time_copies(trainer: Any, seconds: list[float]) -> None:
    """Note the processor time of each comparison of copies."""
    check = trainer._drift.check

    def timed(*arguments: Any) -> None:
        before = time.process_time()
        check(*arguments)
        seconds.append(time.process_time() - before)

    trainer._drift.check = timed


def _fit(trainer: Any, work: Any, items: Iterator[Any]) -> None:
    trainer.fit(lambda _: items, work)


def _fill_window(trainer: Any) -> None:
    """Let the detector have seen a whole window, as it has in all but a run's first steps."""
    for step in range(WINDOW_STEPS):
        numbers = {"loss": 10.5 + step % 7 / 100, "grad_norm": 1.5 + step % 5 / 100}
        trainer._spikes.see(step - WINDOW_STEPS, numbers, trainer._train.global_batch_size)


def config_of(side: str, batch: int) -> Any:
    """A side's config of training."""
    from megalite.training.config import TrainConfig

    watching: dict[str, Any] = {
        "off": {"spikes": {"policy": "off"}, "drift": {"every": 0}, "stragglers": {"every": 0}},
        "on": {"drift": {"every": COPIES_EVERY}, "stragglers": {"every": PACES_EVERY}},
    }
    return TrainConfig(
        steps=10**6, log_every=10**6, global_batch_size=batch, micro_batch_size=1, **watching[side]
    )


def no_stopwatch() -> Any:
    """A stopwatch that does nothing."""
    from megalite.training.watchdog.stopwatch import Stopwatch

    class NoStopwatch(Stopwatch):
        def enter(self, phase: str) -> None:
            """Nothing."""

        def begin_step(self) -> None:
            """Nothing."""

    return NoStopwatch()


def measure(processes: int, words: list[str]) -> dict[str, float]:
    """The figures of so many processes."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [*(launcher if processes > 1 else []), "benchmarks.watching", "--serve", *words]
    done = subprocess.run(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=0, help="1 or 2; 0: one after the other")
    parser.add_argument("--rounds", type=int, default=24, help="of the LLaMA")
    parser.add_argument("--small_rounds", type=int, default=400, help="of the small model")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    words = [f"--{key}={getattr(options, key)}" for key in ("rounds", "small_rounds")]
    for processes in [options.processes] if options.processes else [1, 2]:
        facts = measure(processes, words)
        on, off = facts.pop("on_s"), facts.pop("off_s")
        show(Result(f"watching {processes}", "unwatched", on, off, facts), options.json)


if __name__ == "__main__":
    main()
