"""configs/examples: each file runs as it stands, in the order that the files name."""

import pytest

from megalite.cli import main
from tests.e2e.conftest import ROOT, losses

FOLDER = ROOT / "configs" / "examples"
COMMANDS = {
    "tokenizer": "tokenizer train",
    "data": "data prepare",
    "pretrain": "pretrain",
    "continue": "pretrain",
    "sft": "sft",
    "lora": "sft",
    "rm": "rm",
    "dpo": "dpo",
    "ppo": "ppo",
    "grpo": "grpo",
}


def test_every_example_is_run_here():
    assert {path.stem for path in FOLDER.glob("*.toml")} == set(COMMANDS)


def test_every_example_says_its_command():
    for name, command in COMMANDS.items():
        text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
        assert f"`megalite {command} configs/examples/{name}.toml`" in text.partition("\n[")[0], (
            name
        )


@pytest.mark.slow
def test_the_examples_run_as_they_stand(tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for name, command in COMMANDS.items():
        words = [*command.split(), f"configs/examples/{name}.toml"]
        if name not in ("tokenizer", "data"):
            words += ["--run.device", "cpu"]
        assert main(words) == 0, name
    runs = tmp_path / "runs" / "examples"
    for name in set(COMMANDS) - {"tokenizer", "data"}:
        assert (runs / name / "checkpoints" / "latest").exists(), name
    assert losses(runs / "pretrain")[-1] < losses(runs / "pretrain")[0]
    assert losses(runs / "sft")[-1] < losses(runs / "sft")[0]
