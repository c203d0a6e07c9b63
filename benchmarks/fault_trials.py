"""Kill, stop or break a random rank at a random place under torchrun, and compare the curves.

Each trial is a run of two processes under ``torchrun --max-restarts`` that meets one real fault
(``megalite/training/faults.py``). It must end, after a restart, with the losses of an
uninterrupted run bit for bit, name the rank within the timeout, and lose no complete checkpoint.

Other kinds than ``process``, with the same promise of the curve: ``drift``, a copy of a weight that
changes on one rank; ``spike``, samples of noise that the run goes back from, whose curve is that
of a run which is told to skip them; ``save``, a checkpoint that can't be written; ``stop``, which a
file asks for; ``loop``, a fault at every start, which must end the restarts with a diagnosis;
``straggler``, a rank that sleeps in each step, which must be named, it alone.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

STEPS, EVERY = 16, 4
LAYOUTS = {
    "tp2": ["--parallel.tp", "2"],
    "pp2": ["--parallel.pp", "2"],
    "fsdp2": ["--parallel.shard", "2"],
}
WITH_COPIES = ("tp2",)
SPIKES = ["--train.spikes.policy", "rollback", "--train.spikes.window", "160"]
SPIKE_STEPS, AROUND = 44, 2
PHASES = ("data", "forward_backward", "reduce", "optimizer")
POINTS = ("save", "write_data", "write_manifest", "rename", "move_latest", "delete_old")
ON_PURPOSE, NAMED = (
    "megalite: fault on purpose",
    re.compile(r"megalite: rank (\d+) \(\S+, process \d+\)"),
)
SPARE_S = 15.0  # for stacks, a loaded machine and the end of processes
CONFIG = f"""
[model]
vocab_size = 64
hidden_size = 32
num_layers = 2
num_heads = 2
ffn_size = 48
max_positions = 32
dropout = 0.1

[data]
sequence_length = 32

[train]
steps = {STEPS}
global_batch_size = 4
log_every = 1

[checkpoint]
every = {EVERY}

[run]
trackers = []
device = "cpu"
threads = 1
"""


@dataclass
class Trial:
    """One fault and what came of it.

    Attributes:
        layout: of the two processes.
        kind: kill, stop or raise; or what else the trial is of.
        rank: that it happens to.
        step: in which.
        phase: or point of a checkpoint's writing.
        delay_s: from there until it happens.
        happened: whether the run came to that place.
        named_s: seconds until the rank was named.
        total_s: of the whole trial.
        faults: what did not hold; empty if all did.
    """

    layout: str
    kind: str
    rank: int
    step: int
    phase: str
    delay_s: float = 0.0
    happened: bool = False
    named_s: float = 0.0
    total_s: float = 0.0
    faults: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        """The fault on the command line."""
        keys = ("kind", "rank", "step", "phase", "delay_s")
        return [w for key in keys for w in (f"--faults.{key}", str(getattr(self, key)))]


def draw(seed: int) -> Trial:
    """A random fault. Only rank 0 writes manifests, so it meets what happens there."""
    generator = random.Random(f"trial {seed}")
    layout = generator.choice(sorted(LAYOUTS))
    kind = generator.choice(("kill", "kill", "stop", "raise"))
    if generator.random() < 0.3:
        step = generator.randrange(EVERY, STEPS, EVERY)
        phase = generator.choice(POINTS)
        rank = generator.randrange(2) if phase in POINTS[:2] else 0
        kind = "kill" if kind == "raise" and phase != "save" else kind
    else:
        step, phase = generator.randrange(1, STEPS), generator.choice(PHASES)
        rank = generator.randrange(2)
    delay_s = round(generator.uniform(0, 0.02), 4) if generator.random() < 0.5 else 0.0
    return Trial(layout, kind, rank, step, phase, delay_s)


class Bench:
    """Data and clean runs that all trials share."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        """Write the data.

        Args:
            folder: gets everything.
            timeout_s: of the runs' collectives.
        """
        import numpy as np

        from megalite.data.corpus.store import StoreWriter

        self.folder, self.timeout_s = folder, timeout_s
        self._clean: dict[tuple[str, ...], list[float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(CONFIG)
        generator = np.random.default_rng(0)
        writer = StoreWriter(folder / "data", np.dtype(np.uint16))
        for _ in range(60):
            writer.add(np.cumsum(generator.integers(0, 3, 80)) % 64)
        writer.close()

    def noisy_data(self, step: int) -> str:
        """A store whose samples of a step are noise, in the order of the run's seed."""
        import numpy as np

        from megalite.data.corpus.store import StoreWriter
        from megalite.data.permutation import sample_at

        length, batch = 32, 4
        windows, generator = 4 * SPIKE_STEPS * batch, np.random.default_rng(1)
        tokens = np.cumsum(generator.integers(0, 3, windows * length + 1)) % 64
        for place in range((step - 1) * batch, step * batch):
            first = sample_at(place, windows, 0) * length
            tokens[first : first + length] = generator.integers(0, 64, length)
        path = self.folder / f"noise-{step}"
        if not path.with_suffix(".bin").exists():
            writer = StoreWriter(path, np.dtype(np.uint16))
            writer.add(tokens)
            writer.close()
        return str(path)

    def command(self, layout: str, run: Path, restarts: int) -> list[str]:
        """A run of two processes under torchrun."""
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", f"--max-restarts={restarts}", "-m", "megalite", "pretrain"),
            *(str(self.folder / "config.toml"), "--run.folder", str(run)),
            *("--data.train", json.dumps([str(self.folder / "data")])),
            *("--parallel.timeout_s", str(self.timeout_s), *LAYOUTS[layout]),
        ]

    def clean(self, layout: str, *more: str) -> list[float]:
        """The losses of an uninterrupted run, which is told ``more``."""
        key = (layout, *more)
        if key not in self._clean:
            run = self.folder / f"clean-{len(self._clean)}"
            process = start([*self.command(layout, run, 0), *more])
            _, said = process.communicate()
            if process.returncode:
                raise RuntimeError(said[-3000:])
            self._clean[key] = losses(run)
        return self._clean[key]

    def said(self, trial: Trial, run: Path, restarts: int, *more: str) -> tuple[int, str]:
        """Run to the end; the exit code, and what was said on both streams."""
        process = start([*self.command(trial.layout, run, restarts), *more])
        try:
            out, errors = process.communicate(timeout=10 * self.timeout_s + 300)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, errors = process.communicate()
            trial.faults.append("it hung")
        (run / "stderr.txt").write_text(errors)
        return process.returncode, out + errors

    def compare(self, trial: Trial, run: Path, wanted: list[float]) -> None:
        """Note whether a run's losses are others."""
        if losses(run) != wanted:
            trial.faults.append("the losses differ from the promised ones")

    def play(self, trial: Trial, name: str) -> Trial:
        """Run a trial and note what did not hold."""
        clean, run = self.clean(trial.layout), self.folder / name
        started = time.monotonic()
        process = start([*self.command(trial.layout, run, 1), *trial.words()])
        mouth, ear = Ear(process.stdout), Ear(process.stderr)
        try:
            process.wait(10 * self.timeout_s + 300)
        except subprocess.TimeoutExpired:
            process.terminate()
            trial.faults.append("it hung")
        ear.join()
        mouth.join()
        trial.total_s = time.monotonic() - started
        said = "\n".join(line for _, line in mouth.lines)
        self._judge(trial, ear, process.wait(), said)
        if losses(run) != clean:
            trial.faults.append("the losses differ from the clean run's")
        (run / "stderr.txt").write_text("\n".join(line for _, line in ear.lines))
        return trial

    def _judge(self, trial: Trial, ear: "Ear", code: int, said: str) -> None:
        if code:
            trial.faults.append(f"exit code {code}")
        begun = ear.first(lambda line: ON_PURPOSE in line)
        if begun is None or ear.first(lambda line: "failed (exitcode" in line) is None:
            return
        trial.happened = True
        match = ear.first(NAMED.match)
        if match is None:
            trial.faults.append("no rank was named")
        else:
            trial.named_s = match[0] - begun[0]
            rank = int(NAMED.match(match[1])[1])
            if rank != trial.rank:
                trial.faults.append(f"rank {rank} was named")
            if trial.named_s > self.timeout_s + SPARE_S:
                trial.faults.append("it was named late")
        went_on = re.search(r"resuming from \S*step-(\d+)", said)
        from_step = int(went_on[1]) if went_on else 0
        if from_step < complete_before(trial.step):
            trial.faults.append(f"it went on from {from_step}, a checkpoint was lost")


def drawn(seed: int, kind: str, layouts: Sequence[str], steps: range) -> Trial:
    """A random trial of a kind that is not a process's end."""
    generator = random.Random(f"{kind} {seed}")
    layout, rank = generator.choice(sorted(layouts)), generator.randrange(2)
    phase = generator.choice(("reduce", "optimizer")) if kind == "drift" else "forward_backward"
    return Trial(layout, kind, rank, generator.choice(steps), phase)


def play_drift(bench: Bench, seed: int, name: str) -> Trial:
    """A copy changes on one rank: tensor and ranks are named, and the start after that is right."""
    trial, run = drawn(seed, "drift", WITH_COPIES, range(1, STEPS + 1)), bench.folder / name
    code, said = bench.said(trial, run, 1, *trial.words(), "--train.drift.every", "3")
    trial.happened = "copies differ: " in said
    if code or not trial.happened:
        trial.faults.append(f"exit code {code}, named: {trial.happened}")
    bench.compare(trial, run, bench.clean(trial.layout))
    return trial


def play_spike(bench: Bench, seed: int, name: str) -> Trial:
    """Noise in a step: the run goes back, and has the curve of one that was told to skip it."""
    trial = drawn(seed, "spike", tuple(LAYOUTS), range(36, SPIKE_STEPS - 1))
    run, first = bench.folder / name, 4 * (trial.step - 1)
    data = ["--data.train", json.dumps([bench.noisy_data(trial.step)])]
    more = [*data, "--train.steps", str(SPIKE_STEPS), "--optimizer.learning_rate", "0.01"]
    skip = json.dumps([[first - AROUND, first + 4 + AROUND]])
    around = ["--train.spikes.around", str(AROUND)]
    code, said = bench.said(trial, run, 0, *more, *SPIKES, *around)
    trial.happened = f"step {trial.step}: going back before the spike" in said
    if code or not trial.happened:
        trial.faults.append(f"exit code {code}, went back: {trial.happened}")
    bench.compare(trial, run, bench.clean(trial.layout, *more, "--train.skip", skip))
    return trial


def play_save(bench: Bench, seed: int, name: str) -> Trial:
    """A checkpoint can't be written: training goes on, and later ones are whole."""
    trial = drawn(seed, "save", tuple(LAYOUTS), range(EVERY, STEPS, EVERY))
    run = bench.folder / name
    blocked = run / "checkpoints" / f"step-{trial.step:08}.partial"
    at_step = ["--faults.kind", "slow", "--faults.phase", "data", "--faults.delay_s", "0.3"]
    more = [*at_step, "--faults.step", "1", "--faults.steps", str(EVERY)]
    blocker = threading.Thread(target=_block, args=(run, blocked))
    blocker.start()
    code, said = bench.said(trial, run, 0, *more)
    blocker.join()
    trial.happened = "a checkpoint could not be written" in said
    if code or not trial.happened or "training goes on" not in said:
        trial.faults.append(f"exit code {code}, told: {trial.happened}")
    if (run / "checkpoints" / f"step-{trial.step:08}").exists():
        trial.faults.append("a checkpoint that could not be written is there")
    bench.compare(trial, run, bench.clean(trial.layout))
    return trial


def _block(run: Path, path: Path) -> None:
    """Put a file where a checkpoint is to be written, as soon as the first step is done."""
    while not (run / "metrics.jsonl").exists():
        time.sleep(0.01)
    path.parent.mkdir(exist_ok=True)
    path.touch()


def play_stop(bench: Bench, seed: int, name: str) -> Trial:
    """A file asks for a stop: torchrun ends though it may restart, and the next start goes on."""
    trial = drawn(seed, "stop", tuple(LAYOUTS), range(1, STEPS))
    run = bench.folder / name
    asking = threading.Thread(target=_ask, args=(run, trial.step))
    asking.start()
    slow = ["--faults.kind", "slow", "--faults.phase", "data", "--faults.delay_s", "0.4"]
    code, said = bench.said(trial, run, 9, *slow, "--faults.step", "1", "--faults.steps", "99")
    asking.join()
    trial.happened = "stopped on request" in said
    if trial.happened == (code == 0):
        trial.faults.append(f"exit code {code}")
    if said.count("resuming from"):
        trial.faults.append("torchrun started it again")
    bench.said(trial, run, 0)
    bench.compare(trial, run, bench.clean(trial.layout))
    return trial


def _ask(run: Path, step: int) -> None:
    while len(losses(run)) < step:
        time.sleep(0.01)
    (run / "stop").touch()


def play_loop(bench: Bench, seed: int, name: str) -> Trial:
    """A fault at every start: the restarts end, the step and its samples are told."""
    trial = drawn(seed, "loop", tuple(LAYOUTS), range(1, STEPS + 1))
    words = [*replace(trial, kind="raise").words(), "--faults.restart", "-1"]
    code, said = bench.said(trial, bench.folder / name, 99, *words)
    trial.happened = "3 starts in a row went on from" in said
    first = 4 * (trial.step - 1)
    if not code or not trial.happened or f"has samples {first}-{first + 3} of" not in said:
        trial.faults.append(f"exit code {code}, told: {trial.happened}")
    return trial


def play_straggler(bench: Bench, seed: int, name: str) -> Trial:
    """A rank sleeps in each step: it is named with its phase, nobody else is."""
    trial, run = drawn(seed, "straggler", tuple(LAYOUTS), range(1, 3)), bench.folder / name
    trial.phase = random.Random(f"phase {seed}").choice(PHASES)
    trial.delay_s = 0.3
    words = [*replace(trial, kind="slow").words(), "--faults.steps", str(STEPS)]
    often = ["--train.stragglers.every", "2", "--train.stragglers.steps", "8"]
    code, said = bench.said(trial, run, 0, *words, *often)
    lines = re.findall(r"rank (\d+) \(\S+\) is slower than the others.* s more in (\w+)", said)
    trial.happened = (str(trial.rank), trial.phase) in lines
    if code or not trial.happened or len(lines) > 1:
        trial.faults.append(f"exit code {code}, named: {sorted(set(lines))}")
    bench.compare(trial, run, bench.clean(trial.layout))
    return trial


PLAYS = {
    "process": lambda bench, seed, name: bench.play(draw(seed), name),
    "drift": play_drift,
    "spike": play_spike,
    "save": play_save,
    "stop": play_stop,
    "loop": play_loop,
    "straggler": play_straggler,
}


def complete_before(step: int) -> int:
    """The newest checkpoint that is surely on the disk in a step: the one before the last begun."""
    begun = (step - 1) // EVERY * EVERY
    return max(begun - EVERY, 0)


class Ear(threading.Thread):
    """Reads a process' lines and notes when each came."""

    def __init__(self, stream: IO[str]) -> None:
        """Begin to listen."""
        super().__init__(daemon=True)
        self._stream = stream
        self.lines: list[tuple[float, str]] = []
        self.start()

    def run(self) -> None:
        """Listen until the stream ends."""
        for line in self._stream:
            self.lines.append((time.monotonic(), line.rstrip("\n")))

    def first(self, is_wanted) -> tuple[float, str] | None:
        """The first line of a kind, with its time."""
        return next((pair for pair in self.lines if is_wanted(pair[1])), None)


def start(command: list[str]) -> subprocess.Popen:
    """Start a run."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines]


def show(trial: Trial, number: int, as_json: bool) -> None:
    """Print one trial."""
    if as_json:
        print(json.dumps({"trial": number, **asdict(trial)}), flush=True)
        return
    came = "; ".join(trial.faults) or ("ok" if trial.happened else "ok, ended before it happened")
    print(
        f"{number:3d}  {trial.layout:6s} {trial.kind:6s} rank {trial.rank} step {trial.step:2d} "
        f"{trial.phase:17s} +{trial.delay_s:.3f} s  named after {trial.named_s:5.1f} s  "
        f"whole {trial.total_s:6.1f} s  {came}",
        flush=True,
    )


def main() -> int:
    """Run the trials; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = ("all", *PLAYS)
    parser.add_argument("--kind", choices=kinds, default="process", help="all: each in turn")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--timeout_s", type=float, default=20.0, help="of collectives")
    parser.add_argument("--folder", type=Path, help="kept; without it a temporary one")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(options.folder or Path(temporary), options.timeout_s)
        done = []
        for number in range(options.seed, options.seed + options.trials):
            kinds = tuple(PLAYS) if options.kind == "all" else (options.kind,)
            kind, started = kinds[number % len(kinds)], time.monotonic()
            done.append(PLAYS[kind](bench, number, f"trial-{number}"))
            done[-1].total_s = time.monotonic() - started
            show(done[-1], number, options.json)
    bad = sum(bool(trial.faults) for trial in done)
    happened = sum(trial.happened for trial in done)
    summary = {"trials": len(done), "happened": happened, "failed": bad}
    print(json.dumps(summary) if options.json else summary, flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
