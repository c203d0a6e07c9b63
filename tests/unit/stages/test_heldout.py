"""Held-out data: several sets with names, a share of what is learned, folders of files."""

import json
from pathlib import Path

import numpy as np
import pytest

from megalite.cli import main
from megalite.data.corpus.store import StoreWriter
from megalite.data.split import Split

CONFIG = """
[model]
vocab_size = 270
hidden_size = 16
num_layers = 1
num_heads = 2
ffn_size = 16
[train]
steps = 2
global_batch_size = 4
evaluate_every = 1
evaluate_samples = 9
[run]
trackers = []
device = "cpu"
threads = 1
[data]
sequence_length = 64
"""
ROWS = 30


@pytest.fixture
def place(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text(CONFIG + f'[tokenizer]\npath = "{tokenizer}"\n')
    Path("rows").mkdir()
    for part in range(3):
        rows = [{"prompt": f"red {part} {n}", "response": "cat" * (n % 3)} for n in range(10)]
        write(f"rows/{part}.jsonl", rows)
        ranked = [{"prompt": f"red {n}", "answers": ["cat", "dog"]} for n in range(10)]
        write(f"rankings{part}.jsonl", ranked)
    Path("rows/README.md").write_text("about")
    return tmp_path


def write(name: str, rows: list[dict]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(run: str) -> dict[str, float]:
    """Those of the last step."""
    return json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])


def test_sets_with_names_and_a_share_each_have_a_curve_and_one_says_which_is_best(place, capsys):
    words = ["sft", "config.toml", "--data.train", '["rows"]', "--data.split", "0.2"]
    words += ["--data.validation", '{ first = ["rows/0.jsonl"], more = ["rows/[12].jsonl"] }']
    words += ["--data.packed", "false", "--checkpoint.best", "heldout_loss/more"]
    assert main([*words, "--run.folder", "run", "--train.epochs", "1", "--train.steps", "0"]) == 0
    said = capsys.readouterr().out
    held = Split("heldout", 0.2, seed=0).held_out(np.arange(ROWS)).sum()
    assert f"of {ROWS - held} samples of data.train" in said
    assert "left out, as their names are not those of rows: rows/README.md" in said
    assert "held-out first " in said
    found = metrics("run")
    losses = {key for key in found if key.startswith("heldout_loss")}
    assert losses == {"heldout_loss", "heldout_loss/first", "heldout_loss/more"}
    assert len({found[key] for key in losses}) == 3
    assert "the best evaluation, heldout_loss/more " in said
    write("rows/1.jsonl", [{"prompt": "x", "response": "y"}])
    words += ["--run.folder", "run", "--train.steps", "99"]
    assert main(words) == 2
    assert "--data.train" in capsys.readouterr().err


def test_other_stages_hold_out_a_share_too(place, capsys):
    words = ["rm", "config.toml", "--data.train", '["rankings*.jsonl"]', "--data.split", "0.3"]
    assert main([*words, "--run.folder", "rm"]) == 0
    assert {"heldout_accuracy", "heldout_calibration_error"} <= metrics("rm").keys()
    (details,) = json.loads(Path("rm/rankings.json").read_text()).values()
    assert sum(row["pairs"] for row in details["by_score"]) > 0
    for name in ("a", "b"):
        writer = StoreWriter(place / "stores" / name, np.dtype(np.uint16))
        for number in range(50):
            writer.add((np.arange(40) * (number + len(name))) % 250)
        writer.close()
    words = ["pretrain", "config.toml", "--data.train", '["stores"]', "--data.split", "0.2"]
    words += ["--data.weights", "[0.9, 0.1]", "--data.validation", '{ b = ["stores/b"] }']
    assert main([*words, "--run.folder", "text"]) == 0
    assert {"heldout_loss", "heldout_loss/b"} <= metrics("text").keys()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data.split", "0.1", "--data.heldout", '["rows"]'], "--data.split 0.1: holds out"),
        (["--data.split", "1"], "data.split"),
        (["--data.validation", '{ "a/b" = ["rows"] }'], "--data.validation 'a/b': must be a name"),
        (["--data.validation", "{ a = [] }"], "--data.validation 'a': must be a name"),
        (["--data.split", "0.0001"], "none is held out: raise it"),
        (["--data.train", '["none*"]'], "none*: no file is named so"),
    ],
)
def test_what_can_not_be_held_out_is_refused_in_a_line(place, capsys, words, says):
    assert main(["sft", "config.toml", "--data.train", '["rows"]', *words]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()
