"""The commands as a user types them: five stages, answers, a GPU's curve beside the CPU's, PPO."""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.external import ROOT, run_words, tail
from benchmarks.gpu.here import Here
from megalite.config.load import read_toml
from megalite.tools.demo import STAGES, DemoConfig, steps
from megalite.tools.stdlib_corpus import write_corpus

CORPUS_BYTES = 800_000
NUM_STEPS = {"pretrain": 60, "sft": 10, "rm": 10, "ppo": 3, "dpo": 3}
SMALL = ["--run.trackers", "[]", "--train.log_every", "1"]
CURVE_STEPS, CURVE_LIMIT = 40, 0.03  # the most that losses may differ, as a share
PPO_MODEL = {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 12}
TINY_MODEL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}


def _demo(here: Here) -> dict[str, list[str]]:
    """The demo's commands for one process, by name, its data made; a folder is made once."""
    folder = here.folder / "demo"
    todo = {}
    for step in steps(DemoConfig(folder=str(folder), configs=str(ROOT / "configs/demo"))):
        words = list(step.command)
        words = words[words.index("megalite") + 1 :]
        todo[f"{step.name} {Path(words[-1]).stem}" if step.name in todo else step.name] = words
    if not (folder / "made").exists():
        write_corpus(folder / "corpus", 0, CORPUS_BYTES)
        for name, words in todo.items():
            if name not in (*STAGES, "report"):
                _megalite(here, words)
        (folder / "made").touch()
    return todo


class Failed(Exception):
    """A command failed; the message is the end of what it said."""


def _megalite(here: Here, words: Sequence[str]) -> subprocess.CompletedProcess:
    done = run_words(here, [sys.executable, "-m", "megalite", *words])
    if done.returncode != 0:
        raise Failed(f"exit code {done.returncode}: {tail(done)}")
    return done


def _stage(here: Here, words: Sequence[str], folder: Path, *more: str) -> list[dict[str, Any]]:
    """Run a stage into a folder of its own; its metrics, a step each."""
    shutil.rmtree(folder, ignore_errors=True)  # a run that is there would only be said to be done
    if here.is_rehearsal:
        more = (*more, "--run.device", "cpu")
    _megalite(here, [*words, *SMALL, "--run.folder", str(folder), *more])
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "step_s" in row]


def _precision(folder: Path) -> str:
    """The number format that a run chose."""
    train: Any = read_toml(folder / "config.toml")["train"]
    return train["precision"]


def _size(model: dict[str, int]) -> list[str]:
    words = [word for name, value in model.items() for word in (f"--model.{name}", str(value))]
    return [*words, "--model.ffn_size", str(model["hidden_size"] * 8 // 3 // 16 * 16)]


def run(here: Here) -> None:
    """Each stage of the demo for a few steps, without a word on number format or device."""
    todo, runs = _demo(here), here.folder / "runs"
    expected = "fp32" if here.is_rehearsal else str(here.dtypes()[0])[6:]
    expected = {"bfloat16": "bf16", "float16": "fp16"}.get(expected, expected)
    before = {"sft": ["--checkpoint.start", str(runs / "pretrain")]}
    before["rm"] = ["--checkpoint.start", str(runs / "sft")]
    before["dpo"] = [*before["rm"], "--answers.reward_model", str(runs / "rm")]
    before["ppo"] = [*before["rm"], "--reward_model", str(runs / "rm")]
    shrunk = _size(TINY_MODEL) if here.is_tiny else []
    for name in STAGES:
        count = 1 if here.is_tiny else NUM_STEPS[name]
        few = [
            "--train.steps",
            str(count),
            "--train.evaluate_every",
            "0",
            "--checkpoint.every",
            "0",
        ]
        few += ["--rollout.max_new_tokens", "4"] if here.is_tiny and name == "ppo" else []
        folder = runs / name
        try:
            rows = _stage(here, [*todo[name], *shrunk], folder, *few, *before.get(name, []))
        except (Failed, subprocess.TimeoutExpired) as error:
            here.note(name, str(error)[-400:])
            return
        key = "loss" if "loss" in rows[0] else "policy_loss"
        first, last = float(rows[0].get(key, 0)), float(rows[-1].get(key, 0))
        falls = name != "pretrain" or count == 1 or last < first
        fault = "" if falls else f"the loss does not fall: {first:.3f}, {last:.3f}"
        if (chosen := _precision(folder)) != expected:
            fault = f"computes in {chosen}, not {expected}"
        step_s = statistics.median(row["step_s"] for row in rows)
        here.note(name, fault, precision=chosen, first_loss=first, last_loss=last, step_s=step_s)
    _answer(here, runs / "sft")


def _answer(here: Here, model: Path) -> None:
    words = ["generate", "--model", str(model), "--tokenizer.path"]
    words += [str(here.folder / "demo/tokenizer"), "--prompt", '["def add(a, b):"]']
    words += ["--sampling.max_new_tokens", "4" if here.is_tiny else "32"]
    words += ["--run.device", "cpu"] if here.is_rehearsal else []
    try:
        answer = _megalite(here, words).stdout.strip()
    except (Failed, subprocess.TimeoutExpired) as error:
        here.note("generate", str(error)[-400:])
        return
    here.note("generate", characters=len(answer))


def curve(here: Here) -> None:
    """The same pretraining on the GPU and on the CPU, from the same values and data."""
    words, count = _demo(here)["pretrain"], 2 if here.is_tiny else CURVE_STEPS
    more = ["--train.steps", str(count), "--train.evaluate_every", "0", "--checkpoint.every", "0"]
    more += _size(TINY_MODEL) if here.is_tiny else []
    losses = {}
    for side, device in (("device", "auto"), ("cpu", "cpu")):
        folder = here.folder / "curve" / side
        try:
            rows = _stage(here, words, folder, *more, "--run.device", device)
        except (Failed, subprocess.TimeoutExpired) as error:
            here.note(f"curve, {side}", str(error)[-400:])
            return
        losses[side] = [row["loss"] for row in rows]
    pairs = list(zip(losses["device"], losses["cpu"], strict=True))
    largest = max(abs(ours / cpu - 1) for ours, cpu in pairs)
    fault = "" if largest <= CURVE_LIMIT else f"losses differ by {largest:.1%}"
    last = {"last_loss": pairs[-1][0], "last_loss_cpu": pairs[-1][1]}
    here.note(f"{count} steps of pretraining beside the CPU", fault, most=largest, **last)


def ppo(here: Here) -> None:
    """Steps of PPO with four models of 90 million parameters and the demo's prompts."""
    todo, runs = _demo(here), here.folder / "ppo"
    model = _size(TINY_MODEL if here.is_tiny else PPO_MODEL)
    none = ["--train.evaluate_every", "0", "--checkpoint.every", "0"]
    few = ["--train.steps", "1", *none]
    start = ["--checkpoint.start", str(runs / "actor")]
    last = [
        *start,
        "--reward_model",
        str(runs / "rm"),
        "--train.steps",
        "1" if here.is_tiny else "4",
    ]
    last += ["--rollout.max_new_tokens", "4" if here.is_tiny else "128"]
    try:
        _stage(here, [*todo["pretrain"], *model], runs / "actor", *few)
        _stage(here, [*todo["rm"], *model], runs / "rm", *few, *start)
        rows = _stage(here, [*todo["ppo"], *model], runs / "ppo", *none, *last)
    except (Failed, subprocess.TimeoutExpired) as error:
        here.note("PPO", str(error)[-400:])
        return
    wanted = ("step_s", "rollout_s", "update_s", "judge_s", "response_tokens", "memory_gib")
    figures = {name: rows[-1][name] for name in wanted if name in rows[-1]}
    here.note("a step of PPO", **figures)
