"""The command: references, repetition, going on, and what it refuses."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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
dropout = 0.1
[data]
sequence_length = 48
[train]
steps = 4
global_batch_size = 4
micro_batch_size = 2
evaluate_every = 2
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


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Work:
    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer = folder, tokenizer
        (folder / "config.toml").write_text(CONFIG)
        draw = random.Random(0)

        def text() -> str:
            return " ".join(draw.choices(WORDS, k=draw.randint(2, 5)))

        rows = [{"prompt": text(), "answers": [text(), text(), "dog"][: 2 + n % 2]}
                for n in range(14)]  # fmt: skip
        for name, part in (("train", rows[:10]), ("heldout", rows[10:])):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))
        prompts = "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows[10:])
        (folder / "prompts.jsonl").write_text(prompts)
        sft = [{"instruction": row["prompt"], "output": row["answers"][0]} for row in rows]
        (folder / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sft))
        self.start = self.run("sft", "start", "--data.train", f'["{folder}/sft.jsonl"]')

    def words(self, stage: str, name: str, *more: str) -> list[str]:
        words = [stage, str(self.folder / "config.toml"), "--run.folder", str(self.folder / name)]
        return [*words, "--tokenizer.path", str(self.tokenizer), *more]

    def run(self, stage: str, name: str, *more: str) -> Path:
        assert main(self.words(stage, name, *more)) == 0
        return self.folder / name

    def dpo_words(self, name: str, *more: str) -> list[str]:
        data = ["--data.train", f'["{self.folder}/train.jsonl"]']
        data += ["--data.heldout", f'["{self.folder}/heldout.jsonl"]']
        return self.words("dpo", name, *data, "--checkpoint.start", str(self.start), *more)

    def dpo(self, name: str, *more: str) -> list[dict]:
        assert main(self.dpo_words(name, *more)) == 0
        return lines(self.folder / name / "metrics.jsonl")


@pytest.fixture(scope="module")
def work(tmp_path_factory, tokenizer):
    return Work(tmp_path_factory.mktemp("dpo"), tokenizer)


@pytest.fixture(scope="module")
def whole(work):
    return work.dpo("whole")


def exact(rows: list[dict]) -> list[dict]:
    clocks = ("step_s", "tokens_per_s", "memory_gib", "tflops_per_rank", "mfu", "hfu")
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows]


def test_the_loss_starts_at_log_2_and_falls(whole):
    losses = [row["loss"] for row in whole if "loss" in row]
    assert losses[0] == pytest.approx(0.693147, rel=1e-5)
    assert whole[0]["heldout_loss"] == pytest.approx(0.693147, rel=1e-5)
    assert losses[-1] < losses[0]
    assert whole[-1]["margin"] > 0
    names = ("accuracy", "margin", "chosen_reward", "rejected_reward")
    assert {f"heldout_{name}" for name in names} <= set(whole[-1])


def test_a_run_goes_on_bit_for_bit_and_computes_no_reference_twice(work, whole, capsys):
    work.dpo("resumed", "--train.steps", "2")
    capsys.readouterr()
    again = work.dpo("resumed")
    assert exact(again) == exact(whole)
    said = capsys.readouterr().out
    assert "resuming from" in said
    stored = [
        load_file(path)["log_probs"] for path in (work.folder / "resumed/reference").iterdir()
    ]
    assert len(stored) == 2  # to learn and held out


def test_runs_share_a_reference_and_complete_what_a_stop_left(work, whole, tmp_path, capsys):
    more = ["--reference.folder", str(tmp_path), "--data.heldout", "[]", "--train.steps", "1"]
    (row,) = work.dpo("first", *more)
    assert "log-probabilities of 10 rankings" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    values = load_file(path)["log_probs"]
    left = values.copy()
    left[3:] = np.nan
    save_file({"log_probs": left}, path)
    (again,) = work.dpo("second", *more)
    assert "log-probabilities of 9 rankings" in capsys.readouterr().out
    assert exact([again]) == exact([row])
    assert np.allclose(load_file(path)["log_probs"], values, rtol=1e-6)


def test_a_base_that_is_held_otherwise_is_another_reference(work, tmp_path):
    more = ["--reference.folder", str(tmp_path), "--train.steps", "1", "--lora.rank", "2"]
    for form in ("nf4", "compute"):
        loss = work.dpo(f"held as {form}", *more, "--lora.base_format", form)[0]["heldout_loss"]
        assert loss == pytest.approx(0.693147, abs=1e-6)


def test_a_reference_that_is_asked_in_every_step_says_what_is_stored(work, whole):
    rows = work.dpo("asked", "--reference.kind", "model")
    assert not (work.folder / "asked/reference").exists()
    for row, wanted in zip(rows, whole, strict=True):
        assert row.keys() == wanted.keys()
        for name in {"loss", "grad_norm", "heldout_loss", "margin"} & row.keys():
            assert row[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-6), name


KINDS = {
    "ipo": ["--loss.sft_coefficient", "0.1"],
    "kto": ["--loss.bad_weight", "1.5"],
    "orpo": [],
    "simpo": ["--loss.label_smoothing", "0.1"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_losses_fall_and_dont_depend_on_the_micro_batch(work, kind):
    more = ["--loss.kind", kind, *KINDS[kind], "--checkpoint.every", "0"]
    rows = work.dpo(f"{kind}-2", *more)
    others = work.dpo(f"{kind}-4", *more, "--train.micro_batch_size", "4")
    for row, other in zip(rows, others, strict=True):
        assert row.keys() == other.keys()
        names = {"loss", "grad_norm", "heldout_loss", "heldout_margin", "kto_kl", "sft_loss"}
        for name in names & row.keys():
            assert row[name] == pytest.approx(other[name], rel=2e-4, abs=1e-6), name
    assert rows[-1]["heldout_loss"] != rows[0]["heldout_loss"]
    assert (work.folder / f"{kind}-2" / "reference").exists() == (kind in ("ipo", "kto"))


ANSWERS = ("reward", "reward_deviation", "kl", "entropy", "ended", "response_tokens")
DISTINCT = tuple(f"distinct_{n}" for n in (1, 2, 3))


def test_answers_to_held_out_prompts_are_measured_as_ppo_measures_its_own(work):
    data = ["--data.train", f'["{work.folder}/train.jsonl"]', "--checkpoint.start", str(work.start)]
    reward = work.run("rm", "rm", *data)
    prompts = f'["{work.folder}/prompts.jsonl"]'
    said = ["--answers.prompts", prompts, "--answers.reward_model", str(reward)]
    said += ["--answers.each", "2", "--answers.max_new_tokens", "5", "--answers.temperature", "0.7"]
    dpo = work.dpo("answering", *said, "--data.heldout", "[]", "--checkpoint.every", "0")
    measured = [row for row in dpo if "heldout_kl" in row]
    names = {f"heldout_{name}" for name in (*ANSWERS, *DISTINCT, "self_bleu")}
    assert len(measured) == 3 and all(names <= row.keys() for row in measured)
    assert measured[0]["heldout_kl"] == pytest.approx(0, abs=1e-5)
    assert abs(measured[-1]["heldout_kl"]) > 1e-4
    said = ["--reward_model", str(reward), "--rollout.max_new_tokens", "5"]
    said += ["--rollout.heldout_answers", "2", "--rollout.temperature", "0.7"]
    words = ["--data.train", prompts, "--data.heldout", prompts, "--checkpoint.start"]
    ppo = work.run("ppo", "ppo", *words, str(work.start), *said, "--train.steps", "1")
    first = lines(ppo / "metrics.jsonl")[0]
    assert {name: measured[0][name] for name in names} == pytest.approx(
        {name: first[name] for name in names}, rel=1e-5, abs=1e-5
    )


def test_its_model_answers_and_becomes_a_hugging_face_folder(work, whole, tmp_path, capsys):
    folder, tokenizer = str(work.folder / "whole"), str(work.tokenizer)
    words = ["generate", "--model", folder, "--prompt", '["the"]', "--tokenizer.path", tokenizer]
    assert main([*words, "--sampling.max_new_tokens", "3"]) == 0
    assert main(["convert", "--source", folder, "--target", str(tmp_path / "hf")]) == 0
    assert (tmp_path / "hf" / "config.json").is_file()
    report = ["report", "--runs", f'["{folder}"]', "--output", str(tmp_path / "report.html")]
    assert main(report) == 0
    page = (tmp_path / "report.html").read_text()
    for title in ("Margin of better answers", "Better and worse answers"):
        assert title in page


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--checkpoint.start", ""], "--checkpoint.start: must name a checkpoint: it is the ref"),
        (["--data.train", "[]"], "--data.train: needs at least one file of rankings"),
        (["--loss.kind", "ppo"], "--loss.kind"),
        (["--reference.folder", "{config}"], "--reference.folder: {config}: can't be a folder"),
        (["--loss.label_smoothing", "0.7"], "--loss.label_smoothing"),
        (["--answers.reward_model", "rm"], "--answers.reward_model rm: has nothing to score"),
        (["--answers.prompts", '["none.jsonl"]'], "none.jsonl: no such file"),
        (
            ["--answers.prompts", '["{config}"]', "--loss.kind", "orpo", "--checkpoint.start", ""],
            "--checkpoint.start: must name a checkpoint: answers.prompts",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(work, capsys, more, says):
    config = str(work.folder / "config.toml")
    words = [word.replace("{config}", config) for word in more]
    capsys.readouterr()
    assert main(work.dpo_words("refused", *words)) == 2
    said = capsys.readouterr().err
    assert says.replace("{config}", config) in said
    assert len(said.strip().splitlines()) == 1


def test_a_damaged_file_of_the_reference_is_named(work, whole, capsys):
    path = next((work.folder / "whole" / "reference").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:20])
    assert main(work.dpo_words("whole", "--train.steps", "5")) == 2
    assert f"{path}: can't be read" in capsys.readouterr().err
    path.write_bytes(content)
