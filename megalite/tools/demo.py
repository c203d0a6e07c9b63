"""All stages on the Python standard library's source, each as its own command.

Every step is started as a user would start it; a step that fails stops the demo with its exit code.
At the end PPO's answers stand beside DPO's, and the runs' metrics are compared with what the demo
promises.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from megalite.config import Section
from megalite.config.load import read_toml
from megalite.data.records import Record
from megalite.distributed.launch import Launch
from megalite.errors import ConfigError, MegaliteError
from megalite.stages.device import usable_gpus
from megalite.tools.report.page import read_jsonl
from megalite.tools.report.series import series
from megalite.tools.stdlib_corpus import write_corpus

FOLDER = "runs/demo"  # as the configs have it
STAGES = ("pretrain", "sft", "rm", "ppo", "dpo")
CPU_PROCESSES = 2
PREPARATION = (  # words of a command, its config
    ("tokenizer train", "tokenizer"),
    ("data prepare", "data"),
    ("data prepare", "heldout"),
)
Metrics = dict[str, list[Record]]  # of each stage
ALIGNED = {"ppo": "after PPO", "dpo": "after DPO"}  # stages whose answers are measured
COMPARED = {  # of their answers to the same held-out prompts, with what is shown of it
    "heldout_reward": "reward {:.2f}",
    "heldout_kl": "KL {:.1f} nats",
    "heldout_distinct_2": "distinct-2 {:.3f}",
}


class DemoConfig(Section):
    """The demo's folder and size."""

    folder: str = Field(
        FOLDER, min_length=1, description="folder of the corpus, the runs and report.html"
    )
    configs: str = Field("configs/demo", description="folder of the steps' configs")
    processes: int = Field(
        0,
        ge=0,
        description="number of processes of each stage; 0: one for each GPU that can be used, on a "
        "CPU 2",
    )
    seed: int = Field(0, ge=0, description="seed of the corpus and of each stage")
    corpus_bytes: int = Field(8_000_000, gt=0, description="most bytes of pretraining text")


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Attributes:
        name: what it is called on the terminal.
        command: the program and its arguments.
    """

    name: str
    command: Sequence[str]


@dataclass(frozen=True)
class Promise:
    """What the demo's metrics must show.

    Attributes:
        name: what is measured.
        measure: computes a number from the metrics of all stages.
        least: what the number must reach.
    """

    name: str
    measure: Callable[[Metrics], float]
    least: float


def steps(config: DemoConfig) -> list[Step]:
    """The commands in their order; all options but folder and seed are in the configs."""
    alone = [sys.executable, "-m", "megalite"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    count = config.processes or CPU_PROCESSES
    launcher += [f"--nproc-per-node={count}", "-m", "megalite"]
    seed = ["--run.seed", str(config.seed)] if config.seed else []

    def words(name: str) -> list[str]:
        path = f"{config.configs}/{name}.toml"
        table = read_toml(Path(path))
        smaller = _smaller_passes(_batch_sizes(table), count) if name in STAGES else []
        return [path, *smaller, *_moved(table, config.folder)]

    prepare = [
        Step(command, [*alone, *command.split(), *words(name)]) for command, name in PREPARATION
    ]
    stages = [Step(name, [*launcher, name, *words(name), *seed]) for name in STAGES]
    runs = "[" + ", ".join(f'"{config.folder}/{name}"' for name in STAGES) + "]"
    output = f"{config.folder}/report.html"
    report = Step("report", [*alone, "report", "--runs", runs, "--output", output])
    return [*prepare, *stages, report]


def processes_for(config: DemoConfig, gpus: int) -> int:
    """Processes of each stage: as many as there are GPUs and its batch can be divided among.

    Args:
        config: of the demo; a number in it is taken as it is.
        gpus: that can be used; 0: the CPU computes.
    """
    if config.processes or not gpus:
        return config.processes or CPU_PROCESSES
    tables = [read_toml(Path(f"{config.configs}/{name}.toml")) for name in STAGES]
    samples = math.gcd(*(_batch_sizes(table)[0] for table in tables))
    return max(count for count in range(1, gpus + 1) if samples % count == 0)


def _batch_sizes(table: dict[str, Any]) -> tuple[int, int]:
    """Samples of a step, and of a process's forward pass, in a stage's config."""
    return table["train"]["global_batch_size"], table["train"]["micro_batch_size"]


def _smaller_passes(sizes: tuple[int, int], processes: int) -> list[str]:
    """An override for where a process's share of a step is less than its forward passes take."""
    samples, micro = sizes
    fits = math.gcd(samples // processes, micro)
    return ["--train.micro_batch_size", str(fits)] if 0 < fits < micro else []


def _moved(table: dict[str, object], folder: str, prefix: str = "") -> list[str]:
    """Overrides that move a config's paths from the default folder to another."""
    found: list[str] = []
    for key, value in table.items() if folder != FOLDER else ():
        if isinstance(value, dict):
            found += _moved(value, folder, f"{prefix}{key}.")
        elif f"{FOLDER}/" in (text := value if isinstance(value, str) else json.dumps(value)):
            found += [f"--{prefix}{key}", text.replace(f"{FOLDER}/", f"{folder}/")]
    return found


def run_steps(todo: Sequence[Step]) -> None:
    """Run the commands one after another.

    Raises:
        MegaliteError: one failed; carries its exit code.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    for step in todo:
        started = time.monotonic()
        _say(f"== {step.name}")
        code = subprocess.run(step.command, check=False, env=environment).returncode
        if code != 0:
            error = MegaliteError(f"demo: {step.name} failed with exit code {code}; see above")
            error.exit_code = code if code > 0 else 1
            raise error
        _say(f"== {step.name}: {time.monotonic() - started:.0f} s")


PROMISES = (
    Promise("fall of the held-out loss in pretraining", lambda metrics: _fall(metrics), 0.40),
    Promise(
        "accuracy on held-out pairs", lambda metrics: _last(metrics, "rm", "heldout_accuracy"), 0.75
    ),
    Promise(
        "rise of the held-out reward, in its first standard deviations",
        lambda metrics: _rise(metrics),
        1.0,
    ),
    Promise(
        "nats below a KL of 15 per response",
        lambda metrics: 15 - _last(metrics, "ppo", "heldout_kl"),
        0.0,
    ),
)


def show_aligned(metrics: Metrics) -> None:
    """Print a row of each aligned model's answers, below one of the model that they start from."""
    rows = {"before": {key: _values(metrics, "ppo", key)[0] for key in COMPARED}}
    for stage, name in ALIGNED.items():
        rows[name] = {key: _last(metrics, stage, key) for key in COMPARED}
    for name, values in rows.items():
        parts = (text.format(values[key]) for key, text in COMPARED.items())
        _say(f"answers {name}: {', '.join(parts)}")


def broken_promises(metrics: Metrics, promises: Sequence[Promise] = PROMISES) -> list[str]:
    """Print what was measured for each promise; return those that were not kept."""
    broken = []
    for promise in promises:
        value = promise.measure(metrics)
        line = f"{promise.name}: {value:.3g} (at least {promise.least:g})"
        _say(line)
        if not value >= promise.least:
            broken.append(line)
    return broken


def run(config: DemoConfig, launch: Launch) -> int:
    """Make the corpus, run every stage, write the report, check the promises."""
    if launch.world_size > 1:
        raise ConfigError("demo: starts its own processes; run it without torchrun")
    if not Path(config.configs).is_dir():
        raise ConfigError(
            f"--configs {config.configs}: there is no such folder here: run it in a copy of "
            "megalite's repository, which has them, or name where they are"
        )
    started = time.monotonic()
    gpus = usable_gpus()
    config = config.model_copy(update={"processes": processes_for(config, gpus)})
    _say(f"{config.processes} processes a stage; GPUs that can be used: {gpus or 'none'}")
    folder = Path(config.folder)
    counts = write_corpus(folder / "corpus", config.seed, config.corpus_bytes)
    _say(f"corpus: {', '.join(f'{count} {name}' for name, count in counts.items())}")
    run_steps(steps(config))
    metrics = {name: read_jsonl(folder / name / "metrics.jsonl") for name in STAGES}
    show_aligned(metrics)
    broken = broken_promises(metrics)
    _say(f"{folder}/report.html after {time.monotonic() - started:.0f} s")
    if broken:
        raise MegaliteError(f"demo: promises not kept: {'; '.join(broken)}")
    return 0


def _values(metrics: Metrics, stage: str, key: str) -> list[float]:
    found = [value for _, value in series(metrics[stage], key)]
    if not found:
        raise MegaliteError(f"demo: {stage}/metrics.jsonl holds no {key}; evaluation must be on")
    return found


def _last(metrics: Metrics, stage: str, key: str) -> float:
    return _values(metrics, stage, key)[-1]


def _fall(metrics: Metrics) -> float:
    losses = _values(metrics, "pretrain", "heldout_loss")
    return 1 - losses[-1] / losses[0]


def _rise(metrics: Metrics) -> float:
    rewards = _values(metrics, "ppo", "heldout_reward")
    return (rewards[-1] - rewards[0]) / _values(metrics, "ppo", "heldout_reward_deviation")[0]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
