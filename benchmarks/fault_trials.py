"""Kill, stop or break a random rank at a random place under torchrun, and compare the curves.

Each trial is a run of two processes under ``torchrun --max-restarts`` that meets one real fault
(``megalite/training/faults.py``). It must end, after a restart, with the losses of an
uninterrupted run bit for bit, name the rank within the timeout, and lose no complete checkpoint.

Other kinds than ``process``, with the same promise of the curve: ``drift``, a copy of a weight that
changes on one rank; ``spike``, samples of noise that the run goes back from, whose curve is that
of a run which is told to skip them; ``save``, a checkpoint that can't be written; ``stop``, which a
file asks for; ``loop``, a fault at every start, which must end the restarts with a diagnosis;
``straggler``, a rank that sleeps in each step, which must be named, it alone; ``flip``, a bit that
is wrong once, whose step is computed again and trained on right, or each time, which is named;
``memory``, a rank that gets no more, which must say what it asked for and what the plan said;
``nan``, a gradient of one rank that is not finite, whose step all drop as if it were another's;
``scale``, gradients that stay too large for fp16, which ends with advice at the least loss scale;
``local``, a kill while checkpoints are saved on the node's own disk, too, which loses nothing
that was whole; ``change``, a start of another model in the folder, which is refused and changes
nothing; and ``ppo``, ``reward`` and ``score``, of PPO (``benchmarks/fault_policies.py``).
"""

import argparse
import json
import math
import random
import re
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from benchmarks.fault_bench import (
    EVERY,
    LAYOUTS,
    ON_PURPOSE,
    PHASES,
    SPIKE_STEPS,
    STEPS,
    Bench,
    Trial,
    complete_before,
    draw,
    losses,
)
from benchmarks.fault_policies import POLICY_PLAYS
from megalite.training.loss_scale import LEAST, START
from megalite.training.watchdog.heartbeat import LOCAL_POINTS

WITH_COPIES, WITH_DATA_PARALLEL = ("tp2",), ("fsdp2",)
SPIKES = ["--train.spikes.policy", "rollback", "--train.spikes.window", "160"]
AROUND = 2
CHANGES = (("num_layers", "3"), ("hidden_size", "64"), ("ffn_size", "64"))  # of [model]


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


def play_flip(bench: Bench, seed: int, name: str) -> Trial:
    """A wrong bit once: the step is computed again; a wrong bit each time: it ends by name."""
    layouts, run = WITH_DATA_PARALLEL if seed % 2 else tuple(LAYOUTS), bench.folder / name
    trial = drawn(seed, "flip", layouts, range(2, STEPS + 1, 2))
    words = [*trial.words(), "--train.recheck.every", "2", "--faults.bit", str(seed % 23)]
    if not seed % 2:
        code, said = bench.said(trial, run, 0, *words)
        trial.happened = f"step {trial.step}: computed again (by schedule): another result" in said
        if code or not trial.happened or "the first was wrong" not in said:
            trial.faults.append(f"exit code {code}, told: {trial.happened}")
        bench.compare(trial, run, bench.clean(trial.layout))
        return trial
    code, said = bench.said(trial, run, 0, *words, "--faults.again", "true")
    trial.happened = "data-parallel ranks differ on the same rows: a persistent fault" in said
    if not trial.happened or "exitcode  : 6" not in said or f"rank {trial.rank} (" not in said:
        trial.faults.append(f"exit code {code}, told: {trial.happened}")
    bench.compare(trial, run, bench.clean(trial.layout)[: trial.step - 1])
    return trial


def play_memory(bench: Bench, seed: int, name: str) -> Trial:
    """A rank gets no more memory: all end, told where, how much and what was planned."""
    trial, run = drawn(seed, "memory", tuple(LAYOUTS), range(2, STEPS + 1)), bench.folder / name
    trial.phase = random.Random(f"phase {seed}").choice(PHASES)
    code, said = bench.said(trial, run, 0, *trial.words())
    in_pass = " of micro-batch 1 of" if trial.phase == "forward_backward" else ""
    of_stage = f", pipeline stage {trial.rank + 1} of 2" if trial.layout == "pp2" else ""
    wanted = (
        rf"rank {trial.rank} \(\S+\) in step {trial.step}, {trial.phase}{in_pass}.*{of_stage}: "
        r"out of memory: it asked for 1.05e\+06 GiB, .* megalite plan says \S+ GiB of tensors"
    )
    trial.happened = re.search(wanted, said) is not None
    if not code or not trial.happened:
        trial.faults.append(f"exit code {code}, told: {trial.happened}")
    done = max(len(losses(run)), trial.step - 1)  # a pipeline's first rank may have logged the step
    bench.compare(trial, run, bench.clean(trial.layout)[: min(done, trial.step)])
    return trial


def play_nan(bench: Bench, seed: int, name: str) -> Trial:
    """A gradient of one rank is not finite: all drop the step, whichever rank it is of."""
    trial, run = drawn(seed, "nan", tuple(LAYOUTS), range(1, STEPS + 1)), bench.folder / name
    trial.phase = "reduce"
    code, said = bench.said(trial, run, 0, *trial.words())
    trial.happened = f"step {trial.step}: its gradients were not finite" in said
    if code or not trial.happened:
        trial.faults.append(f"exit code {code}, told: {trial.happened}")
    others = replace(trial, rank=1 - trial.rank)
    bench.compare(trial, run, bench.clean(trial.layout, *others.words()))
    return trial


def play_scale(bench: Bench, seed: int, name: str) -> Trial:
    """fp16 can't hold a rank's gradients: the scale falls to its least, and the run ends there.

    The start after that goes on as one whose gradients were too large up to its checkpoint.
    """
    halvings = round(math.log2(START / LEAST))
    trial, run = drawn(seed, "nan", tuple(LAYOUTS), range(1, STEPS + 1)), bench.folder / name
    trial.phase, last = "reduce", trial.step + halvings
    more = ["--train.precision", "fp16", "--train.steps", str(last + STEPS)]
    code, said = bench.said(trial, run, 0, *more, *trial.words(), "--faults.steps", str(last))
    trial.happened = f"step {last}: gradients were not finite at a loss scale of 1, the" in said
    if not code or not trial.happened or len(losses(run)) != last - 1:
        trial.faults.append(f"exit code {code}, told: {trial.happened}, {len(losses(run))} steps")
    code, said = bench.said(trial, run, 0, *more)
    went_on = re.search(r"resuming from \S*step-(\d+)", said)
    from_step = int(went_on[1]) if went_on else 0
    if code or from_step < complete_before(last):
        trial.faults.append(f"exit code {code}, it went on from {from_step}")
    words = replace(trial, rank=1 - trial.rank).words() if from_step >= trial.step else []
    steps = ["--faults.steps", str(from_step - trial.step + 1)] if words else []
    bench.compare(trial, run, bench.clean(trial.layout, *more, *words, *steps))
    return trial


def play_local(bench: Bench, seed: int, name: str) -> Trial:
    """A kill between saves on the node's own disk: the start after that goes on from the last."""
    generator, run = random.Random(f"local {seed}"), bench.folder / name
    trial = drawn(seed, "kill", tuple(LAYOUTS), range(2, STEPS))
    trial.phase = generator.choice((*PHASES, *LOCAL_POINTS))
    steps = ["--faults.steps", str(EVERY)]  # at a shared save there is no local one
    disk = ["--checkpoint.local.folder", f"{run}-disk", "--checkpoint.local.every", "1"]
    code, said = bench.said(trial, run, 1, *trial.words(), *steps, *disk)
    trial.kind, trial.happened = "local", ON_PURPOSE in said
    if code or (trial.happened and said.count("resuming from") > 1):
        trial.faults.append(f"exit code {code}, starts: {said.count('resuming from')}")
    went_on = re.search(r"resuming from \S*step-(\d+)", said)
    if trial.happened and int(went_on[1] if went_on else 0) < complete_before(trial.step):
        trial.faults.append(f"it went on from {went_on[1] if went_on else 0}")
    bench.compare(trial, run, bench.clean(trial.layout))
    return trial


def play_change(bench: Bench, seed: int, name: str) -> Trial:
    """A start of another model in a run's folder: refused by name, and nothing is another then."""
    trial, run = drawn(seed, "change", tuple(LAYOUTS), range(EVERY + 1, STEPS)), bench.folder / name
    key, value = random.Random(f"key {seed}").choice(CHANGES)
    bench.said(trial, run, 0, *replace(trial, kind="raise").words())
    before = (run / "config.toml").read_bytes(), losses(run)
    code, said = bench.said(trial, run, 0, f"--model.{key}", value)
    trial.happened = f"--model: {key} {value} (there " in said
    if "exitcode  : 2" not in said or not trial.happened:
        trial.faults.append(f"exit code {code}, named: {trial.happened}")
    if before != ((run / "config.toml").read_bytes(), losses(run)):
        trial.faults.append("a start that was refused has changed the folder")
    bench.said(trial, run, 0)
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
    "flip": play_flip,
    "memory": play_memory,
    "nan": play_nan,
    "scale": play_scale,
    "local": play_local,
    "change": play_change,
    **POLICY_PLAYS,
}


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
