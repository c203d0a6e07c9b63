"""What fault trials share: a tiny model under torchrun, its clean curves, what comes of a fault."""

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

STEPS, EVERY = 16, 4
LAYOUTS = {
    "tp2": ["--parallel.tp", "2"],
    "pp2": ["--parallel.pp", "2"],
    "fsdp2": ["--parallel.shard", "2"],
}
SPIKE_STEPS = 44
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
        self.folder, self.timeout_s = folder, timeout_s
        self._clean: dict[tuple[str, ...], list[float]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.prepare()

    def prepare(self) -> None:
        """Write what all runs read."""
        import numpy as np

        from megalite.data.corpus.store import StoreWriter

        (self.folder / "config.toml").write_text(CONFIG)
        generator = np.random.default_rng(0)
        writer = StoreWriter(self.folder / "data", np.dtype(np.uint16))
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
            *under_torchrun(2, restarts),
            *("pretrain", str(self.folder / "config.toml"), "--run.folder", str(run)),
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
        command = [*self.command(trial.layout, run, 1), *trial.words()]
        code, mouth, ear = self.heard(trial, run, command)
        self._judge(trial, ear, code, mouth.text())
        self.compare(trial, run, clean)
        return trial

    def heard(
        self,
        trial: Trial,
        run: Path,
        command: list[str],
        act: Callable[[subprocess.Popen], None] | None = None,
    ) -> tuple[int, "Ear", "Ear"]:
        """Run to the end; the exit code, and both streams with the time of each line.

        ``act`` is given torchrun, and does something to what it has started.
        """
        process = start(command)
        mouth, ear = Ear(process.stdout), Ear(process.stderr)
        try:
            if act is not None:
                act(process)
            process.wait(10 * self.timeout_s + 300)
        except subprocess.TimeoutExpired:
            process.terminate()
            trial.faults.append("it hung")
        ear.join()
        mouth.join()
        (run / "stderr.txt").write_text(ear.text())
        return process.wait(), mouth, ear

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
        self.judge_loss(trial, said)

    @staticmethod
    def judge_loss(trial: Trial, said: str) -> None:
        """Note whether a start went on from an older checkpoint than the newest that was whole."""
        went_on = re.search(r"resuming from \S*step-(\d+)", said)
        from_step = int(went_on[1]) if went_on else 0
        if from_step < complete_before(trial.step):
            trial.faults.append(f"it went on from {from_step}, a checkpoint was lost")


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

    def text(self) -> str:
        """All that was heard."""
        return "\n".join(line for _, line in self.lines)

    def first(self, is_wanted) -> tuple[float, str] | None:
        """The first line of a kind, with its time."""
        return next((pair for pair in self.lines if is_wanted(pair[1])), None)


def under_torchrun(processes: int, restarts: int) -> list[str]:
    """The beginning of a command line."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    counts = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    return [*launcher, *counts, "-m", "megalite"]


def start(command: list[str], console: IO[str] | None = None) -> subprocess.Popen:
    """Start a run, its streams in a file, or in pipes."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    out, errors = (subprocess.PIPE, subprocess.PIPE) if console is None else (console, console)
    return subprocess.Popen(command, env=environment, stdout=out, stderr=errors, text=True)


def losses(run: Path) -> list[float]:
    """The loss of every step of a run."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line)["loss"] for line in lines]
