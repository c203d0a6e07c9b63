"""Clean runs of each structure under load: detectors of spikes, drift and slow ranks are quiet.

Each run is a published recipe at ``--scale``, in two processes of torchrun, with the detectors'
defaults but for copies, which are compared every ten steps. Beside it busy programs come and go,
more of them than there are cores. A line of a detector is a false alarm.

    python -m benchmarks.false_alarms --runs 10
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.recipe_runs import losses, make_text, scale_to, words_of

RECIPES = ("llama-7b", "t5-small", "bloom-176b", "bart-large", "glm-130b")
LAYOUTS = {
    "tp2": ["--parallel.tp", "2"],
    "pp2": ["--parallel.pp", "2"],
    "dp2": ["--parallel.replicate", "2"],
}
ALARMS = ("a spike", "copies differ", "slower than the others")
BUSY = "import time\nend = time.monotonic() + {seconds}\nwhile time.monotonic() < end: pass"


class Load:
    """Busy programs that come and go while its ``with`` block runs."""

    def __init__(self, seed: int) -> None:
        """Draw them from a seed."""
        self._generator, self._is_over = random.Random(f"load {seed}"), threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        """Begin."""
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        """End once the last of them has."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.is_set():
            seconds = self._generator.uniform(0.5, 4)
            count = self._generator.randrange(2 * (os.cpu_count() or 1) + 1)
            line = [sys.executable, "-S", "-c", BUSY.format(seconds=seconds)]
            programs = [subprocess.Popen(line) for _ in range(count)]
            time.sleep(0 if programs else seconds)
            for program in programs:
                program.wait()


def run(number: int, text: Path, folder: Path, steps: int) -> dict:
    """One clean run: its recipe, layout, steps, and the lines that are alarms."""
    name = RECIPES[number % len(RECIPES)]
    layout = list(LAYOUTS)[number % len(LAYOUTS)]
    more = [*LAYOUTS[layout], "--train.drift.every", "10", "--train.evaluate_every", "0"]
    words = words_of(name, scale_to(name, steps), text, folder, "--run.seed", str(number), *more)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "megalite", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    said = (done.stdout + done.stderr).splitlines()
    alarms = [line for line in said if any(alarm in line for alarm in ALARMS)]
    return {"recipe": name, "layout": layout, "steps": len(losses(folder)), "alarms": alarms}


def main() -> None:
    """Run the benchmark; exit code 1 where there was an alarm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200, help="of each run, about")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    count = 0
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "text"
        text.mkdir()
        make_text(text)
        for number in range(options.runs):
            with Load(number):
                found = run(number, text, Path(place) / f"run-{number}", options.steps)
            count += len(found["alarms"])
            print(json.dumps(found) if options.json else _line(found), flush=True)
    if not options.json:
        print(f"{options.runs} runs, {count} false alarms")
    sys.exit(1 if count else 0)


def _line(found: dict) -> str:
    said = "; ".join(found["alarms"]) or "quiet"
    return f"{found['recipe']:12s} {found['layout']}  {found['steps']:4d} steps  {said}"


if __name__ == "__main__":
    main()
