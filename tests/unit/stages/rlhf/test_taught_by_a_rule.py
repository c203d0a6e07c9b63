"""A rule as reward teaches a model that knows nothing a task: to say a prompt's letter twice."""

import json

import pytest

from megalite.cli import main

LETTERS = "abcdef"
CONFIG = """
[model]
vocab_size = 8
hidden_size = 32
num_layers = 2
num_heads = 2
ffn_size = 64
max_positions = 16
[data]
sequence_length = 8
[train]
global_batch_size = 16
micro_batch_size = 64
[optimizer]
weight_decay = 0.0
[schedule]
kind = "constant"
warmup = 0
[checkpoint]
every = 0
[run]
trackers = []
device = "cpu"
threads = 1
[kl]
coefficient = 0.0
[rollout]
max_new_tokens = 2
slots = 128
micro_batch_size = 128
"""
REWARD = """
def copied(prompt, answer, row):
    return sum(letter == prompt for letter in answer.split()) / 2
"""
SIZES = {  # of a step's prompts and their answers: 128 of each
    "grpo": ["--train.global_batch_size", "16", "--rollout.answers", "8"],
    "ppo": ["--train.global_batch_size", "128", "--update.epochs", "1"],
}


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """The words of a run that begins with a model of random weights."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("taught")
    names = {"<|end|>": 0} | {letter: n for n, letter in enumerate(LETTERS, 1)} | {"\n": 7}
    inner = Tokenizer(models.WordLevel(names, unk_token="<|end|>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")
    fast.save_pretrained(folder / "tokenizer")
    (folder / "config.toml").write_text(CONFIG)
    (folder / "reward.py").write_text(REWARD)
    for name, rows in (
        ("prompts", [{"prompt": letter} for letter in LETTERS]),
        ("sft", [{"prompt": "a", "completion": "a"}] * 16),
    ):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)

    def of(stage: str, *more: str) -> list[str]:
        data = "sft" if stage == "sft" else "prompts"
        start = [stage, str(folder / "config.toml"), "--run.folder", str(folder / stage)]
        start += ["--data.train", f'["{folder}/{data}.jsonl"]']
        return [*start, "--tokenizer.path", str(folder / "tokenizer"), *more]

    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.partition("[kl]")[0])
    few = ["--train.steps", "1", "--train.micro_batch_size", "16"]
    assert main(of("sft", *few, "--optimizer.learning_rate", "1e-12")) == 0
    (folder / "config.toml").write_text(text)
    reward = ["--reward.function", f"{folder}/reward.py:copied", "--reward.time_limit_s", "100.0"]
    return lambda stage, *more: (
        of(stage, "--checkpoint.start", str(folder / "sft"), *reward, *more),
        folder / stage / "metrics.jsonl",
    )


@pytest.mark.parametrize("stage", SIZES)
def test_a_task_is_taught_from_nothing(words, stage):
    command, metrics = words(
        stage, "--train.steps", "52", "--optimizer.learning_rate", "1e-2", *SIZES[stage]
    )
    assert main(command) == 0
    rewards = [json.loads(line)["reward"] for line in metrics.read_text().splitlines()]
    assert rewards[0] < 0.2
    assert sum(rewards[-3:]) / 3 > 0.9
