"""Recipes at --scale on real text; ``python -m benchmarks.recipes`` runs every one."""

import json
import shutil
from pathlib import Path

import pytest

from megalite.cli import main
from tests.recipes.text import make_text, pretraining


def losses(folder: Path) -> list[float]:
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    make_text(folder)
    return folder


def pretrain(*arguments, **more) -> int:
    return main(pretraining(*arguments, **more))


@pytest.mark.slow
def test_blooms_ramp_runs_and_resumes_in_its_middle_bit_for_bit(text, tmp_path, capsys):
    """30 steps and more: 2 samples at first, 16 at last."""
    every = ["--checkpoint.every", "8", "--checkpoint.asynchronous", "false"]
    every += ["--checkpoint.keep", "99"]
    assert pretrain("bloom-176b", 0.0003, text, tmp_path / "whole", *every) == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) >= 30 and whole[-1] < whole[0]
    said = capsys.readouterr().out
    assert "of 2 to 16 x 64 tokens" in said
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    saved = tmp_path / "part/checkpoints"
    for folder in saved.glob("step-*"):
        if folder.name > "step-00000008":
            shutil.rmtree(folder)
    (saved / "latest").write_text("step-00000008")
    assert pretrain("bloom-176b", 0.0003, text, tmp_path / "part", *every) == 0
    assert "resuming from" in capsys.readouterr().out
    assert losses(tmp_path / "part") == whole


def test_t5_runs_with_adafactor(text, tmp_path):
    assert pretrain("t5-v1.1-small", 3e-5, text, tmp_path / "run") == 0
    found = losses(tmp_path / "run")
    assert len(found) == 30 and found[-1] < found[0]
