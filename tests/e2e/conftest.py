"""A tiny corpus, tokenizer, stores and configs, made once by the real commands."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.dist.cluster import Cluster
from tests.forked import Forked

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WORDS = ["red", "green", "blue", "one", "two", "three", "cat", "dog", "sees", "likes", "and", "the"]

CONFIG = """
[model]
vocab_size = 300
hidden_size = 32
num_layers = 2
num_heads = 2
ffn_size = 48
max_positions = 128

[train]
steps = {steps}
global_batch_size = 4
micro_batch_size = 1
log_every = 1
evaluate_samples = 4

[optimizer]
learning_rate = 1e-2

[checkpoint]
every = 5

[run]
trackers = []
device = "cpu"
threads = 1
"""


def megalite(*words: str, processes: int = 1) -> subprocess.CompletedProcess:
    """Run a command as a user would; torchrun starts it where there are several processes."""
    line, options = command_line(words, processes), {"capture_output": True, "text": True}
    return subprocess.run(line, env=environment(), timeout=200, check=False, **options)


def command_line(words: Sequence[str], processes: int = 1) -> list[str]:
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    return [*launcher, "-m", "megalite", *map(str, words)]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def losses(folder: Path) -> list[float]:
    """The loss of every step of a run."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def sentence(generator: random.Random) -> str:
    return " ".join(generator.choice(WORDS) for _ in range(generator.randint(3, 12)))


class Work:
    """The folder of the tests' data.

    Attributes:
        folder: has corpus.jsonl, sft.jsonl, rankings.jsonl, prompts.jsonl, tokenizer and data.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = random.Random(0)
        texts = [{"text": " ".join(sentence(generator) for _ in range(5))} for _ in range(200)]
        pairs = [(sentence(generator), sentence(generator)) for _ in range(40)]
        turns = [
            [{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in pairs
        ]
        self.write("corpus", texts)
        self.write("sft", [{"messages": one} for one in turns])
        rankings = [{"prompt": a, "answers": [b, sentence(generator), "x"]} for a, b in pairs]
        self.write("rankings", rankings)
        self.write("prompts", [{"prompt": a} for a, _ in pairs])
        self.runs = self.commands = 0
        for words in (
            ["tokenizer", "train", "--source", f'["{folder}/corpus.jsonl"]', "--vocab_size", "300"]
            + ["--output", f"{folder}/tokenizer"],
            ["data", "prepare", "--source", f'["{folder}/corpus.jsonl"]', "--tokenizer"]
            + [f"{folder}/tokenizer", "--output", f"{folder}/data", "--processes", "1"],
        ):
            done = self.start(words).wait()
            assert done.returncode == 0, done.stderr

    def write(self, name: str, rows: list) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(text)

    def config(self, steps: int = 20) -> Path:
        """A TOML file of the tiny model."""
        path = self.folder / f"steps{steps}.toml"
        path.write_text(CONFIG.format(steps=steps))
        return path

    def new_run(self) -> Path:
        """A folder for one more run."""
        self.runs += 1
        return self.folder / f"run{self.runs}"

    def pretrain_words(self, run: Path, *more: str, steps: int = 20) -> list[str]:
        """The words of a pretraining."""
        data = ["--data.train", f'["{self.folder}/data"]', "--data.sequence_length", "32"]
        paths = ["--tokenizer.path", f"{self.folder}/tokenizer", "--run.folder", str(run)]
        return ["pretrain", str(self.config(steps)), *data, *paths, *more]

    def start(self, words: Sequence[object], **limits: int) -> Forked:
        """Start a command in a process whose imports are done."""
        self.commands += 1
        return Forked(words, self.folder / f"command{self.commands}", **limits)

    def pretrain(self, run: Path, *more: str):
        """Pretrain in such a process; must succeed."""
        done = self.start(self.pretrain_words(run, *more)).wait()
        assert done.returncode == 0, done.stderr[-3000:]
        return done


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The first test of this folder pays for the corpus, and each starts a command or several."""
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def work(tmp_path_factory):
    return Work(tmp_path_factory.mktemp("e2e"))


@pytest.fixture(scope="session")
def whole(work):
    """An uninterrupted run of 20 steps, as a user starts it."""
    run = work.new_run()
    done = megalite(*work.pretrain_words(run))
    assert done.returncode == 0, done.stderr[-3000:]
    return run


@pytest.fixture(scope="session")
def pair():
    """Two processes that run stages together, without torchrun."""
    started = Cluster(2)
    yield started
    started.close()
