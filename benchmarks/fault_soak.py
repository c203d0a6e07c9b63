"""A run of four processes, tp 2 x pp 2, for half an hour of faults drawn from a seed.

Processes are killed and stopped, disks are slow and full, samples of noise make spikes that the run
goes back from. It must go on from each, have the curve of an uninterrupted run that was told what
it skips, bit for bit, and hold memory and file descriptors of its processes flat: those of torchrun
throughout, those of its processes as long as they live, which in the calm at the end is long enough
to tell.

    python -m benchmarks.fault_soak --minutes 30 --seed 1
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.fault_bench import CONFIG, losses, start
from megalite.data.corpus.store import StoreWriter
from megalite.data.permutation import sample_at

PROCESSES, BATCH, LENGTH, EVERY = 4, 4, 32, 25
MOST_STEPS = 20_000
BETWEEN_S = (15.0, 60.0)  # from a step after the last event to the next event
FULL_S, LOOK_S, FEWEST_LOOKS = 20.0, 5.0, 4
CALM_BEGINS_S = 600.0  # the most from the last event to the next step
SMALL_BYTES = 4096  # the longest file on a full disk
GROWTH = 1.05  # most of a process's memory from the first third of its life to the last
LAYOUT = ["--parallel.tp", "2", "--parallel.pp", "2"]
SPIKES = [
    *("--train.spikes.policy", "rollback", "--train.spikes.window", "160"),
    *("--train.spikes.around", "2", "--train.spikes.limit", "1000"),
]
EVENTS = ("kill", "kill", "stop", "full", "full", "save")


class Soak:
    """The run, its processes, and what happens to them."""

    def __init__(self, folder: Path, seed: int, timeout_s: float) -> None:
        """Write the data; a spike somewhere in each two hundred steps."""
        self.folder, self.run = folder, folder / "soak"
        self._generator, self._timeout_s = random.Random(f"soak {seed}"), timeout_s
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text(CONFIG)
        self._write_data(seed)
        self._began = time.monotonic()
        self._seen: dict[int, list[tuple[int, int]]] = defaultdict(list)  # KiB, descriptors
        self.happened: dict[str, int] = defaultdict(int)
        self.flat = 0  # processes that did not grow
        slow = {"kind": "slow", "rank": self._generator.randrange(PROCESSES), "step": 1}
        slow |= {"phase": "write_data", "steps": MOST_STEPS, "delay_s": 0.5, "restart": -1}
        self._slow_disk = [
            w for key, value in slow.items() for w in (f"--faults.{key}", str(value))
        ]

    def _write_data(self, seed: int) -> None:
        generator, windows = np.random.default_rng(seed), 4 * MOST_STEPS * BATCH
        tokens = np.cumsum(generator.integers(0, 3, windows * LENGTH + 1)) % 64
        for first in range(60, MOST_STEPS, 200):
            step = first + int(generator.integers(0, 100))
            for place in range((step - 1) * BATCH, step * BATCH):
                at = sample_at(place, windows, 0) * LENGTH
                tokens[at : at + LENGTH] = generator.integers(0, 64, LENGTH)
        writer = StoreWriter(self.folder / "data", np.dtype(np.uint16))
        writer.add(tokens)
        writer.close()

    def command(self, run: Path, restarts: int, steps: int, *more: str) -> list[str]:
        """The run under torchrun; its learning rate is the same for any number of steps."""
        return [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *(f"--nproc-per-node={PROCESSES}", f"--max-restarts={restarts}", "-m", "megalite"),
            *("pretrain", str(self.folder / "config.toml"), "--run.folder", str(run)),
            *("--data.train", json.dumps([str(self.folder / "data")]), *LAYOUT),
            *("--parallel.timeout_s", str(self._timeout_s), "--train.steps", str(steps)),
            *("--schedule.kind", "constant", "--schedule.warmup", "0"),
            *("--optimizer.learning_rate", "0.01", "--checkpoint.every", str(EVERY)),
            *("--run.most_failures", "0", "--train.log_every", "100", *more),
        ]

    def say(self, text: str) -> None:
        """Write a line with the time and the step that the run is in."""
        seconds = int(time.monotonic() - self._began)
        step = len(losses(self.run))
        print(f"{seconds // 60:3d}:{seconds % 60:02d}  step {step:5d}  {text}", flush=True)

    def play(self, minutes: float, calm_minutes: float) -> None:
        """Let things happen for so many minutes, then nothing; stop the run after a step."""
        command = self.command(self.run, 999, MOST_STEPS, *SPIKES, *self._slow_disk)
        with open(self.run.with_suffix(".txt"), "w", encoding="utf-8") as console:  # on the disk
            process = start(command, console)
        self._began = time.monotonic()
        until = self._began + 60 * minutes
        while time.monotonic() < until and process.poll() is None:
            self._wait_for_step(process, until)
            self._wait(self._generator.uniform(*BETWEEN_S), process)
            self._happen(self._generator.choice(EVENTS), process)
        self.say(f"{calm_minutes:g} minutes of calm")
        self._wait_for_step(process, time.monotonic() + CALM_BEGINS_S)
        self._wait(60 * calm_minutes, process)
        self.run.joinpath("stop").touch()
        process.wait(600)

    def _wait_for_step(self, process: subprocess.Popen, until: float) -> None:
        """Wait until the run has done a step since now."""
        metrics = self.run / "metrics.jsonl"
        since = time.time()
        while time.monotonic() < until and process.poll() is None:
            if metrics.exists() and metrics.stat().st_mtime > since:
                return
            time.sleep(1)

    def _wait(self, seconds: float, process: subprocess.Popen) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._look(process)
            time.sleep(min(LOOK_S, max(until - time.monotonic(), 0)))

    def _workers(self, process: subprocess.Popen) -> list[int]:
        path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        found = [int(word) for word in path.read_text().split()] if path.exists() else []
        return [pid for pid in found if b"megalite" in _read(f"/proc/{pid}/cmdline")]

    def _look(self, process: subprocess.Popen) -> None:
        """Note memory and file descriptors of torchrun and of its processes, which do steps."""
        for pid in (process.pid, *self._workers(process)):
            lines = _read(f"/proc/{pid}/status").decode().splitlines()
            sizes = [int(line.split()[1]) for line in lines if line.startswith("VmRSS")]
            try:
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
            if sizes:
                self._seen[pid].append((sizes[0], descriptors))

    def _happen(self, event: str, process: subprocess.Popen) -> None:
        workers = self._workers(process)
        if len(workers) < PROCESSES:
            return
        rank = self._generator.randrange(PROCESSES)
        self.happened[event] += 1
        self.say(event if event == "save" else f"{event}, process {rank}")
        if event == "full":
            self._fill_disk(workers[rank], process)
        elif event == "save":
            self.run.joinpath("save").touch()
        else:
            os.kill(workers[rank], signal.SIGKILL if event == "kill" else signal.SIGSTOP)

    def _fill_disk(self, pid: int, process: subprocess.Popen) -> None:
        """A process can write no file longer than a few bytes for a while."""
        try:
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (SMALL_BYTES, before[1]))
            self._wait(FULL_S, process)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
        except ProcessLookupError:
            return

    def grown(self) -> list[str]:
        """Processes whose memory or file descriptors were more at their end than early on."""
        found: list[str] = []
        for pid, seen in self._seen.items():
            third = len(seen) // 3
            if third < FEWEST_LOOKS:
                continue
            first, last = seen[:third], seen[-third:]
            # the middle, as a look may fall into a save
            pairs = [[median(one[n] for one in part) for n in (0, 1)] for part in (first, last)]
            (early, few), (late, many) = pairs
            what = f"{early / 1024:.1f} to {late / 1024:.1f} MiB, {few:g} to {many:g} descriptors"
            is_flat = late <= GROWTH * early and many <= few
            verdict = "flat" if is_flat else "grew"
            self.say(f"process {pid}, {len(seen)} looks: {what}: {verdict}")
            self.flat += is_flat
            if not is_flat:
                found.append(f"process {pid} grew: {what}")
        if self.flat + len(found) <= PROCESSES:
            found.append("too few processes lived long enough to tell whether they grow")
        return found

    def check(self) -> list[str]:
        """Go on to a last step, and compare with a run to which nothing happened."""
        steps = len(losses(self.run)) + 10
        went_on = start(self.command(self.run, 0, steps, *SPIKES))
        _, said = went_on.communicate()
        faults = [f"it did not reach its step: {said[-2000:]}"] if went_on.returncode else []
        skipped = self.run / "skipped.json"
        entries = json.loads(skipped.read_text()) if skipped.exists() else []
        self.happened["gone back"] = len(entries)
        skip = json.dumps([[entry["first"], entry["end"]] for entry in entries])
        clean = self.folder / "clean"
        self.say(f"{steps} steps, and a clean run that is told to skip {skip}")
        told = ["--train.skip", skip] if entries else []
        process = start(self.command(clean, 0, steps, *told))
        _, said = process.communicate()
        if process.returncode:
            return [*faults, f"the clean run failed: {said[-2000:]}"]
        if losses(self.run) != losses(clean) or len(losses(clean)) != steps:
            faults.append("the losses differ from the promised ones")
        return faults


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def main() -> int:
    """Play the soak; 1 if anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--calm_minutes", type=float, default=5.0, help="after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout_s", type=float, default=40.0, help="of collectives")
    parser.add_argument("--folder", type=Path, help="kept; without it a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(options.folder or Path(temporary), options.seed, options.timeout_s)
        soak.play(options.minutes, options.calm_minutes)
        faults = [*soak.grown(), *soak.check()]
        text = (soak.run / "log.txt").read_text(encoding="utf-8")
        said = {
            "resumed": text.count("resuming from"),
            "saves that failed": text.count("could not"),
        }
        happened = {**soak.happened, **said, "flat": soak.flat}
        print(json.dumps({"happened": happened, "failed": faults}), flush=True)
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
