"""Trials of PPO for ``benchmarks.fault_trials``: faults of its processes, functions and models.

Actor and critic are on two processes, and the frozen models there, too, or on a third. ``ppo``: a
rank is killed, stopped, hangs or raises in a rollout or an update. ``reward``: the process of a
reward function is killed or stopped in a call, or killed between two rollouts, or a rank gets
SIGTERM in a rollout. ``score``: a reward model gives no number for one prompt. Each run must have
the losses of an uninterrupted one bit for bit; one without a score, of one whose gradients are not
finite in that step.
"""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.fault_bench import (
    EVERY,
    LAYOUTS,
    SPARE_S,
    STEPS,
    Bench,
    Trial,
    losses,
    under_torchrun,
)

POLICY_LAYOUTS = LAYOUTS | {"frozen": [*LAYOUTS["fsdp2"], "--frozen.processes", "1"]}
PHASES = ("data", "rollout", "rollout", "forward_backward", "reduce", "optimizer", "log")
BATCH, SHORT_WORDS, LONG_WORDS = 4, 6, 45
NO_NUMBER_AT = 44  # a position that short prompts and their answers don't come to
LIMIT_S, PAUSE_S = 6.0, 2.0  # of a call, and how long the one takes in which something happens
NO_CALL = "while it had no call"
HOWS = {  # what happens in a rollout, and what is said of it
    "kill": "ended its process with exit code -9",
    "stop": f"gave nothing within {LIMIT_S:g} s",
    "between": "exit code -9",
    "term": "stopped on request; step",
}
WORDS = ("the", "red", "cat", "sees", "a", "dog", "and", "one", "bird")
CONFIG = f"""
[model]
vocab_size = 300
hidden_size = 32
num_layers = 2
num_heads = 2
ffn_size = 48
max_positions = 128
position = "learned"

[data]
sequence_length = 112

[train]
steps = {STEPS}
global_batch_size = {BATCH}
log_every = 1

[optimizer]
learning_rate = 1e-3

[checkpoint]
every = {EVERY}

[run]
trackers = []
device = "cpu"
threads = 1
"""
REWARDS = """
import os
import time
from pathlib import Path

def brevity(prompt, answer, row):
    asked = Path(__file__).with_suffix(".asked")
    if row["number"] == {number} and not asked.exists():
        asked.with_suffix(".partial").write_text(str(os.getpid()))
        asked.with_suffix(".partial").rename(asked)
        time.sleep({pause_s})
    return -0.1 * len(answer)
"""


class PolicyBench(Bench):
    """Prompts, a model to align, a reward model and one that gives no number far behind."""

    def prepare(self) -> None:
        """Write the texts, and train what is to be there, by the commands as a user types them."""
        (self.folder / "config.toml").write_text(CONFIG)
        draw = random.Random(0)
        texts = [" ".join(draw.choices(WORDS, k=LONG_WORDS)) for _ in range(40)]
        self._write("texts", [{"text": text} for text in texts])
        self._write("pairs", [{"instruction": text[:20], "output": text[20:40]} for text in texts])
        pairs = [(text[:20], [text[20:40], text[40:50]]) for text in texts]
        self._write("rankings", [{"prompt": one, "answers": two} for one, two in pairs])
        self.prompts()
        source = ["--source", self._paths("texts"), "--vocab_size", "300"]
        _run("tokenizer", "train", *source, "--output", str(self.folder / "tokenizer"))
        _run(*self._stage("sft", "start", "pairs"), "--train.steps", "1")
        begin = ["--checkpoint.start", str(self.folder / "start"), "--train.steps", "1"]
        _run(*self._stage("rm", "reward", "rankings"), *begin)
        _without_numbers(self.folder / "reward", self.folder / "no-number")

    def prompts(self, long: int = -1) -> str:
        """A file with the prompts of all steps, of which one may be long; the key's value."""
        draw, name = random.Random(1), f"prompts-{long}"
        lengths = [draw.randrange(2, SHORT_WORDS) for _ in range(BATCH * STEPS)]
        texts = [" ".join(draw.choices(WORDS, k=length)) for length in lengths]
        if long >= 0:
            texts[long] = " ".join(draw.choices(WORDS, k=LONG_WORDS))
        self._write(name, [{"prompt": text, "number": n} for n, text in enumerate(texts)])
        return self._paths(name)

    def _write(self, name: str, rows: Sequence[dict]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(text)

    def _paths(self, name: str) -> str:
        return json.dumps([str(self.folder / f"{name}.jsonl")])

    def _stage(self, stage: str, run: str, data: str) -> list[str]:
        words = [stage, str(self.folder / "config.toml"), "--run.folder", str(self.folder / run)]
        tokenizer = ["--tokenizer.path", str(self.folder / "tokenizer")]
        return [*words, *tokenizer, "--data.train", self._paths(data)]

    def write_rewards(self, run: Path, number: int) -> Path:
        """A reward function of a run, which takes its time for the prompt of this number, once."""
        path = run.with_suffix(".py")
        path.write_text(REWARDS.format(number=number, pause_s=PAUSE_S))
        return path

    def command(self, layout: str, run: Path, restarts: int) -> list[str]:
        """A run of PPO under torchrun, its answers scored by a model and a function."""
        rewards = run.with_suffix(".py")
        if not rewards.exists():
            self.write_rewards(run, -1)
        processes = 3 if layout == "frozen" else 2
        return [
            *under_torchrun(processes, restarts),
            *self._stage("ppo", run.name, "prompts--1"),
            *("--checkpoint.start", str(self.folder / "start")),
            *("--reward_model", str(self.folder / "reward")),
            *("--reward.function", f"{rewards}:brevity"),
            *("--reward.time_limit_s", str(LIMIT_S), "--rollout.max_new_tokens", "8"),
            *("--update.epochs", "2", "--kl.target", "1.0", "--kl.horizon", "20"),
            *("--parallel.timeout_s", str(self.timeout_s), *POLICY_LAYOUTS[layout]),
        ]


@functools.cache
def policies(folder: Path, timeout_s: float) -> PolicyBench:
    """The bench of all trials of PPO."""
    return PolicyBench(folder, timeout_s)


def _run(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megalite", *words], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])


def _without_numbers(source: Path, target: Path) -> None:
    """A copy of a model whose table of positions has no number at one of them."""
    import torch

    from megalite.training.checkpoint.load import find_checkpoint, load
    from megalite.training.checkpoint.manager import CheckpointManager
    from megalite.training.checkpoint.manifest import read_manifest
    from megalite.training.checkpoint.reader import CheckpointReader

    path = find_checkpoint(source)
    saved = CheckpointReader(path).read_metadata().state_dict_metadata
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in saved.items()
    }
    load(path, tensors)
    for name in tensors:
        if name.endswith("positions.weight"):
            tensors[name][NO_NUMBER_AT] = torch.nan
    facts, _ = read_manifest(path)
    CheckpointManager(target / "checkpoints", asynchronous=False).save(1, tensors, facts)


def play_ppo(bench: Bench, seed: int, name: str) -> Trial:
    """A process ends or hangs in a rollout or an update; the start after that does it again."""
    generator = random.Random(f"ppo {seed}")
    layout = generator.choice(sorted(POLICY_LAYOUTS))
    rank = generator.randrange(3 if layout == "frozen" else 2)
    phase = generator.choice(PHASES if rank < 2 else ("wait", "rollout"))
    kind = generator.choice(("kill", "stop", "hang", "raise"))
    if phase == "wait":  # where a process may stand still for ever
        kind = generator.choice(("kill", "stop"))
    delay_s = round(generator.uniform(0, 0.05), 4) if generator.random() < 0.5 else 0.0
    trial = Trial(layout, kind, rank, generator.randrange(1, STEPS), phase, delay_s)
    return policies(bench.folder / "policies", bench.timeout_s).play(trial, name)


def play_reward(bench: Bench, seed: int, name: str) -> Trial:
    """Something happens to a reward function's process, or to a rank that waits for its scores."""
    generator = random.Random(f"reward {seed}")
    bench = policies(bench.folder / "policies", bench.timeout_s)
    layout, how = generator.choice(sorted(POLICY_LAYOUTS)), generator.choice(sorted(HOWS))
    rank = generator.randrange(3 if layout == "frozen" else 2) if how == "term" else 0
    number, run = generator.randrange(1, BATCH * STEPS), bench.folder / name
    trial, rewards = Trial(layout, how, rank, 0, "rollout"), bench.write_rewards(run, number)
    wanted, began = bench.clean(layout), 0.0

    def act(launcher: subprocess.Popen) -> None:
        nonlocal began
        asked = rewards.with_suffix(".asked")
        if not _came(asked.exists, launcher):
            return
        trial.step = len(losses(run)) + 1
        process = int(asked.read_text())
        if how == "between" and not _came(lambda: len(losses(run)) >= trial.step, launcher):
            return
        if how == "term":
            process = next(pid for pid in _children(launcher.pid) if _rank_of(pid) == rank)
        signals, began = {"stop": signal.SIGSTOP, "term": signal.SIGTERM}, time.monotonic()
        with suppress(ProcessLookupError):  # after the last step
            os.kill(process, signals.get(how, signal.SIGKILL))

    code, mouth, ear = bench.heard(trial, run, bench.command(layout, run, 1), act)
    line = ear.first(lambda line: HOWS[how] in line)
    trial.happened = line is not None
    is_over = trial.step == STEPS and how in ("between", "term")
    if code or (line is None and not is_over):
        trial.faults.append(f"exit code {code}, named: {trial.happened}")
    elif line is not None:
        trial.named_s = line[0] - began
        where = f"prompts--1.jsonl:{number + 1}"
        if how in ("kill", "stop") and not (f"{rewards}:brevity" in line[1] and where in line[1]):
            trial.faults.append(f"it was named otherwise: {line[1]}")
        if trial.named_s > LIMIT_S + SPARE_S:
            trial.faults.append("it was named late")
        _judge_starts(trial, line[1], mouth.text())
    bench.compare(trial, run, wanted)
    return trial


def _judge_starts(trial: Trial, line: str, said: str) -> None:
    """Note whether there were other starts than there should be, or a step was lost by a stop."""
    went_on = [int(step) for step in re.findall(r"resuming from \S*step-(\d+)", said)]
    if NO_CALL in line:
        trial.faults += ["it was started again"] * bool(went_on)
    elif trial.kind == "term" and went_on != [trial.step]:
        trial.faults.append(f"stopped in step {trial.step}, it went on from {went_on}")
    else:
        Bench.judge_loss(trial, said)


def play_score(bench: Bench, seed: int, name: str) -> Trial:
    """A reward model gives no number for one prompt: its name is told, the step is dropped."""
    generator = random.Random(f"score {seed}")
    bench = policies(bench.folder / "policies", bench.timeout_s)
    layout, number = generator.choice(sorted(POLICY_LAYOUTS)), generator.randrange(BATCH * STEPS)
    trial, run = Trial(layout, "score", generator.randrange(2), 0, "rollout"), bench.folder / name
    data = ["--data.train", bench.prompts(number)]

    def judged_by(model: str) -> list[str]:
        return [*data, "--reward.models", f'{{ other = "{bench.folder / model}" }}']

    code, said = bench.said(trial, run, 0, *judged_by("no-number"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["reward/other"] == "nan"]
    trial.happened, trial.step = len(steps) == 1, next(iter(steps), 0)
    told = f"step {trial.step}: reward, reward/other of its answers: not finite"
    if code or not trial.happened or told not in said:
        trial.faults.append(f"exit code {code}, in steps {steps}, named: {told in said}")
    dropped = Trial(layout, "nan", trial.rank, max(trial.step, 1), "reduce")
    wanted = bench.clean(layout, *judged_by("reward"), *dropped.words())
    found = losses(run)
    if [*_but(found, trial.step)] != [*_but(wanted, trial.step)] or len(found) != STEPS:
        trial.faults.append("the losses differ from the promised ones")
    return trial


def _but(values: Sequence[float], step: int) -> Iterator[float]:
    """All values but that of a step."""
    return (value for number, value in enumerate(values, 1) if number != step)


def _came(is_there: Callable[[], bool], process: subprocess.Popen) -> bool:
    """Wait for something; whether it came before the end of a process."""
    while not is_there():
        if process.poll() is not None:
            return False
        time.sleep(0.01)
    return True


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()]


def _rank_of(pid: int) -> int:
    found = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
    return int(found[1]) if found else -1


POLICY_PLAYS = {"ppo": play_ppo, "reward": play_reward, "score": play_score}
