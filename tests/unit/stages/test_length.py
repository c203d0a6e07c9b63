"""How long a run is: in steps, in epochs of its samples, in tokens; said in steps at its start."""

import json
from pathlib import Path

import pytest

from megalite.cli import main
from megalite.config import load
from megalite.config.load import read_toml
from megalite.errors import ConfigError
from megalite.stages.length import in_steps
from megalite.stages.pretrain import PretrainConfig
from megalite.stages.sft import SFTConfig
from megalite.training.progress import Progress
from megalite.training.schedule import total_samples

CONFIG = """
[model]
vocab_size = 270
hidden_size = 16
num_layers = 1
num_heads = 2
ffn_size = 16
[train]
global_batch_size = 4
[run]
trackers = []
device = "cpu"
threads = 1
[data]
sequence_length = 64
"""


def of(cls, *words: str):
    return load(cls, None, ["--train.global_batch_size", "8", *words])


@pytest.mark.parametrize(
    ("words", "samples", "steps"),
    [
        (["--train.steps", "7"], 100, 7),
        ([], 100, 1000),
        (["--train.steps", "0"], 100, 0),
        (["--train.epochs", "3"], 100, 38),  # 37.5
        (["--train.epochs", "1"], 8, 1),
        (["--train.epochs", "0.5"], 100, 7),
        (["--train.epochs", "0.01"], 3, 1),
        (["--train.epochs", "2", "--train.steps", "0"], 64, 16),
    ],
)
def test_epochs_are_steps_of_the_samples_that_there_are(words, samples: int, steps: int):
    config, said = in_steps(of(SFTConfig, *words), samples)
    assert config.train.steps == steps
    assert not config.train.epochs
    if "--train.epochs" in words:
        assert f"of {samples} samples" in said[0]
        assert f"{steps} steps of 8 samples" in said[0]
    else:
        assert said == ([] if steps else ["train.steps is 0: nothing is trained"])


@pytest.mark.parametrize(
    ("tokens", "number"),
    [("10B", 10**10), ("1.5k", 1500), ("2_000_000", 2_000_000), ("0.3M", 300_000), ("1T", 10**12)],
)
def test_tokens_are_steps_of_whole_sequences(tokens: str, number: int):
    config = of(PretrainConfig, "--train.tokens", tokens)
    assert config.train.num_tokens == number
    told, said = in_steps(config, 5, 1024)
    assert 8192 * (told.train.steps - 1) < number <= 8192 * told.train.steps
    assert f"{told.train.steps:,} steps of 8 x 1,024 tokens" in said[0]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--train.epochs", "3", "--train.steps", "5"], "train.epochs 3.0 and train.steps 5 are"),
        (["--train.epochs", "3", "--train.tokens", "5M"], "train.epochs 3.0 and train.tokens 5M"),
        (["--train.samples", "3", "--train.epochs", "5"], "train.epochs 5.0 and train.samples 3"),
        (["--train.samples", "five"], "--train.samples five: must be a number, perhaps with K, M"),
        (["--schedule.warmup", "2000"], "--schedule.warmup: '2000': a share of the run is at"),
        (["--schedule.warmup", "two steps"], "--schedule.warmup: 'two steps': must be a share"),
        (["--train.batch_ramp.start", "9"], "--train.batch_ramp.start 9: with an increment of 1"),
        (["--train.tokens", "ten"], "--train.tokens ten: must be a number, perhaps with K, M, B"),
        (["--train.tokens", "-3"], "--train.tokens -3: must be a number"),
        (["--train.epochs", "-1"], "--train.epochs"),
    ],
)
def test_two_lengths_and_what_is_no_length_are_refused(words, says: str):
    with pytest.raises(ConfigError) as error:
        of(SFTConfig, *words)
    assert says in str(error.value)


BLOOM = [
    *("--train.samples", "220M", "--train.global_batch_size", "2048"),
    *("--train.batch_ramp.start", "192", "--train.batch_ramp.increment", "16"),
    *("--train.batch_ramp.over", "9765625 samples", "--schedule.warmup", "375M tokens"),
    *("--schedule.end", "200M samples"),
]


def test_a_ramps_run_has_the_steps_of_a_loop_and_its_units_are_told_in_samples():
    config, said = in_steps(load(PretrainConfig, None, BLOOM), 5, 2048)
    consumed = steps = 0
    while consumed < 220_000_000:
        size = min(192 + consumed * 116 // 9_765_625 * 16, 2048)
        consumed, steps = consumed + size, steps + 1
    assert config.train.steps == steps
    assert total_samples(config.train, Progress()) == consumed
    assert config.train.full_steps == consumed / 2048
    assert config.schedule.warmup == "183105 samples"
    assert said == [
        f"train.samples 220M: {steps:,} steps of 192 to 2,048 x 2,048 tokens",
        "schedule.warmup 375M tokens: 183105 samples",
        "schedule.end 200M samples: 200000000 samples",
    ]
    assert in_steps(config, 5, 2048) == (config, [])


def test_a_ramps_steps_are_counted_by_its_sizes():
    words = ["--train.batch_ramp.sizes", '{ 0 = 4, "10 steps" = 8 }', "--train.steps", "15"]
    config, _ = in_steps(of(SFTConfig, *words, "--schedule.warmup", "12 steps"), 100)
    assert config.schedule.warmup == "56 samples"
    assert config.train.batch_ramp.sizes == {"0": 4, "40 samples": 8}
    assert total_samples(config.train, Progress()) == 80
    assert total_samples(config.train, Progress(11, 48)) == 80
    with pytest.raises(ConfigError, match="over 0.5: is a share of a run whose length is told in"):
        in_steps(
            of(SFTConfig, "--train.batch_ramp.start", "4", "--train.batch_ramp.over", "0.5"), 9
        )


def test_what_is_skipped_may_be_told_in_steps():
    ranges = '[["3 steps", "5 steps"], [60, "80 samples"]]'
    words = ["--train.batch_ramp.sizes", '{ 0 = 4, "4 steps" = 8 }', "--train.skip", ranges]
    config, _ = in_steps(of(SFTConfig, *words), 100)
    assert config.train.skip == config.train.skipped == ((12, 24), (60, 80))
    for told, says in (
        ('[[9, "2 steps"]]', "is from sample 9 to 8: its end must be after"),
        ('[["5 steps", "5 steps"]]', r"\[5 steps, 5 steps\]: must be a range"),
        ('[[0, "9 weeks"]]', "'9 weeks': must be a share"),
        ('[[0, "0.5"]]', "must be numbers of samples, or have a unit"),
    ):
        words[-1] = told
        with pytest.raises(ConfigError, match=f"--train.skip.*{says}"):
            in_steps(of(SFTConfig, *words), 100)


def test_tokens_of_rows_are_refused():
    with pytest.raises(ConfigError, match="--train.tokens 5M: is a length of pretraining"):
        in_steps(of(SFTConfig, "--train.tokens", "5M"), 10)


def test_a_run_of_epochs_says_its_steps_and_goes_on_by_the_same_command(
    tmp_path, monkeypatch, tokenizer, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG)
    rows = [{"prompt": f"red {n}", "response": "cat " * (n % 5)} for n in range(1, 20)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sft", "config.toml", "--data.train", '["rows.jsonl"]', "--run.folder", "run"]
    words += ["--tokenizer.path", str(tokenizer), "--data.packed", "false"]
    assert main([*words, "--train.epochs", "1"]) == 0
    said = capsys.readouterr().out
    assert "train.epochs 1 of 19 samples of data.train: 5 steps of 4 samples" in said
    assert "step 5/5" in said
    config = read_toml(Path("run/config.toml"))["train"]
    assert (config["steps"], config["epochs"]) == (5, 0)
    assert main([*words, "--train.epochs", "1"]) == 0
    assert "is done: 5 of 5 steps" in capsys.readouterr().out
    assert main([*words, "--train.epochs", "2"]) == 0
    assert "going on with --train.steps 10, was 5" in capsys.readouterr().out
