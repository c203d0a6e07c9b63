"""A tiny model to align, by the commands as a user types them."""

import json
import random
from pathlib import Path

import pytest

from megalite.cli import main

WORDS = ["the", "red", "cat", "sees", "a", "dog"]
CONFIG = """
[model]
vocab_size = 270
hidden_size = 16
num_layers = 2
num_heads = 2
ffn_size = 24
max_positions = 64
[data]
sequence_length = 48
[train]
steps = 3
global_batch_size = 4
micro_batch_size = 2
[optimizer]
learning_rate = 1e-2
[schedule]
kind = "constant"
warmup = 0
[checkpoint]
every = 2
asynchronous = false
[run]
trackers = []
device = "cpu"
threads = 1
"""
REWARDS = """
def short(prompt, answer, row):
    return -len(answer)
def fails(prompt, answer, row):
    if answer:
        raise RuntimeError("no such answer")
    return 0
"""


class Work:
    """A folder of prompts and rankings, a start, a reward model and reward functions.

    Attributes:
        folder: of all of it.
        tokenizer: of the models.
        rewards: the file of reward functions.
    """

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        (folder / "config.toml").write_text(CONFIG)
        self.rewards = folder / "rewards.py"
        self.rewards.write_text(REWARDS)
        draw = random.Random(0)

        def text() -> str:
            return " ".join(draw.choices(WORDS, k=draw.randint(2, 4)))

        rows = [{"prompt": text(), "answers": [text(), "dog"], "answer": "x"} for _ in range(10)]
        for name in ("rm", "prompts"):
            self.write(name, rows)
        self.write("sft", [{"instruction": "the cat", "output": "a dog"}] * 4)
        self._start = self.run("sft", "start", "--data.train", f'["{folder}/sft.jsonl"]')
        start = ["--checkpoint.start", str(self._start), "--train.steps", "1"]
        self.reward = self.run("rm", "reward", "--data.train", f'["{folder}/rm.jsonl"]', *start)

    def write(self, name: str, rows: list[dict]) -> None:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (self.folder / f"{name}.jsonl").write_text(text)

    def words(self, stage: str, name: str, *more: str) -> list[str]:
        words = [stage, str(self.folder / "config.toml"), "--run.folder", str(self.folder / name)]
        return [*words, "--tokenizer.path", str(self.tokenizer), *more]

    def run(self, stage: str, name: str, *more: str) -> Path:
        assert main(self.words(stage, name, *more)) == 0
        return self.folder / name

    def align_words(self, stage: str, name: str, *more: str) -> list[str]:
        """The words of a run that answers the prompts."""
        data = ["--data.train", f'["{self.folder}/prompts.jsonl"]']
        data += ["--checkpoint.start", str(self._start), "--rollout.max_new_tokens", "6"]
        return self.words(stage, name, *data, *more)

    def align(self, stage: str, name: str, *more: str) -> list[dict]:
        """Run; the lines of its metrics."""
        assert main(self.align_words(stage, name, *more)) == 0
        return self.metrics(name)

    def metrics(self, name: str) -> list[dict]:
        path = self.folder / name / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="session")
def work(tmp_path_factory, tokenizer):
    return Work(tmp_path_factory.mktemp("align"), tokenizer)
