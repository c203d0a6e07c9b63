"""A recipe at --scale on real text; ``python -m benchmarks.recipes`` runs every one."""

import json
import shutil

import pytest

from benchmarks.recipe_runs import losses, make_text, words_of
from benchmarks.recipes import cut, went_on
from megalite.cli import main


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    make_text(folder)
    return folder


@pytest.mark.slow
def test_blooms_ramp_runs_and_resumes_in_its_middle_bit_for_bit(text, tmp_path, capsys):
    """15 steps and more: 2 samples at first, 16 at last."""
    scale, every = ["--scale", "0.00015"], ["--checkpoint.every", "2", "--checkpoint.keep", "99"]
    assert main(words_of("bloom-176b", scale, text, tmp_path / "whole", *every)) == 0
    whole = losses(tmp_path / "whole")
    assert len(whole) >= 15
    said = capsys.readouterr().out
    assert "of 2 to 16 x 64 tokens" in said
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert 2 < json.loads(lines[2])["batch_size"] < 16
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    cut(tmp_path / "part", 2)
    assert main(words_of("bloom-176b", scale, text, tmp_path / "part", *every)) == 0
    assert went_on(tmp_path / "part", 2)
    assert losses(tmp_path / "part") == whole
