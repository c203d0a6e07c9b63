"""Runs checks one after another, each in a process of its own with its share of the time.

A check that crashes, hangs or takes the device with it costs its own share and nothing else: what
it had found is kept, and the next one starts anew.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.checks import BUILD, CHECKS, FIRST, Check

ROOT = Path(__file__).parents[2]
LEAST_S = 4.0  # less is not worth a process
SPARE_S = 3.0  # for the process to start and end, beyond what the check may take
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Budget:
    """How the time is divided.

    Attributes:
        seconds: for all checks.
        started: when they began.
        scale: of each check's share: 1 where the default time is given.
    """

    seconds: float
    started: float
    scale: float

    @classmethod
    def of(cls, minutes: float, checks: Sequence[Check]) -> "Budget":
        """The time, from now on, over checks and the import before them."""
        shares = sum(check.seconds for check in checks) + FIRST.seconds
        return cls(60 * minutes, time.monotonic(), 60 * minutes / shares)

    def share(self, check: Check) -> float:
        """Seconds that a check gets; what others left over is there for those after them."""
        left = self.seconds - (time.monotonic() - self.started) - SPARE_S
        return min(check.seconds * max(self.scale, 1.0), left)


@dataclass
class Outcome:
    """What became of a check.

    Attributes:
        check: its name.
        rows: its results.
        seconds: that it took.
        fault: how it ended, if not well.
    """

    check: str
    rows: Rows
    seconds: float
    fault: str = ""

    @property
    def is_well(self) -> bool:
        """Whether it ended and found nothing wrong."""
        return not self.fault and not any(row.get("fault") for row in self.rows)


class Driver:
    """Runs checks, prints their results and writes them into a file after each."""

    def __init__(self, folder: Path, is_rehearsal: bool, part: int) -> None:
        """Begin with a new file of results.

        Args:
            folder: of results and of what the checks leave.
            is_rehearsal: whether everything runs on the CPU.
            part: 1 or 2, or 0 for both, which names the file.
        """
        self.folder, self.is_rehearsal = folder, is_rehearsal
        self.file = folder / f"results{f'-{part}' if part else ''}.json"
        self.outcomes: list[Outcome] = []
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, checks: Sequence[Check], minutes: float) -> bool:
        """Run them all; whether all is well."""
        budget = Budget.of(minutes, checks)
        first = self._one(FIRST, budget.share(FIRST))
        if not first.is_well:
            if self.is_rehearsal or not first.rows:  # it didn't come as far as the kernels
                return False
            built = self._one(BUILD, min(BUILD.seconds, budget.seconds / 2))
            if not built.is_well or not self._one(FIRST, budget.share(FIRST)).is_well:
                return False
        for check in checks:
            seconds = budget.share(check)
            if seconds < LEAST_S:
                self._keep(Outcome(check.name, [], 0.0, "left out: no time left"))
            else:
                self._one(check, seconds)
        return all(outcome.is_well for outcome in self.outcomes if outcome.check != BUILD.name)

    def _one(self, check: Check, seconds: float) -> Outcome:
        rows, log = (
            self.folder / f"{check.name.replace(' ', '-')}.{end}" for end in ("rows", "log")
        )
        for path in (rows, *self.folder.glob(f"{rows.stem}.*.inner")):
            path.unlink(missing_ok=True)
        words = [sys.executable, "-m", "benchmarks.gpu", "--check", check.name]
        words += ["--seconds", f"{seconds:.1f}", "--rows", str(rows), "--folder", str(self.folder)]
        words += ["--rehearse"] if self.is_rehearsal else []
        started = time.monotonic()
        fault = _ended(words, log, seconds + SPARE_S)
        taken = time.monotonic() - started
        outcome = Outcome(check.name, read_rows(rows), taken, fault)
        self._keep(outcome)
        return outcome

    def _keep(self, outcome: Outcome) -> None:
        if outcome.check == FIRST.name:  # once, as it ended last
            self.outcomes = [kept for kept in self.outcomes if kept.check != FIRST.name]
        self.outcomes.append(outcome)
        show(outcome)
        self.file.write_text(json.dumps([vars(kept) for kept in self.outcomes], indent=1))


def _ended(words: list[str], log: Path, seconds: float) -> str:
    """Run a process and all that it starts; how it ended, if not well."""
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}",
    }
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _kill_group(process)
    if code == 0:
        return ""
    said = log.read_text(errors="replace").strip().splitlines()
    last = said[-1][:200] if said else "it said nothing"
    return f"no end after {seconds:.0f} s" if code is None else f"exit code {code}: {last}"


def _kill_group(process: subprocess.Popen) -> None:
    """End a process and those that it started, which are in its session."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def read_rows(path: Path) -> Rows:
    """The results of a check; a last line that was cut is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def show(outcome: Outcome) -> None:
    """Print what became of a check, a line for each of its results."""
    print(f"== {outcome.check}: {outcome.seconds:.0f} s {outcome.fault}", flush=True)
    for row in outcome.rows:
        said = row.get("left_out") or row.get("fault") or ""
        mark = "-" if "left_out" in row else "FAULT" if said else "ok"
        print(f"  {mark:5s} {row['case']:48s} {said} {shown(row.get('figures', {}))}", flush=True)


def shown(figures: dict[str, Any]) -> str:
    """Figures in a line."""
    words = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    return "  ".join(words)


def of_part(part: int) -> list[Check]:
    """The checks of a part, or of both where it is 0."""
    return [check for check in CHECKS if part in (0, check.part)]
