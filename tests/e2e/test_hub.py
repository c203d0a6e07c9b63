"""One name on the Hub starts a run: weights, [model], tokenizer and template come along."""

import shutil
from pathlib import Path

import pytest

from megalite.cli import main
from megalite.config.load import read_toml
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.models.config import ModelConfig
from megalite.models.hugging_face import write_folder
from tests.e2e.conftest import losses
from tests.hub import reach, serving

SIZES = {"vocab_size": 300, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "ffn_size": 16}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def publish(folder: Path, tokenizer: Path, seed: int) -> None:
    config = ModelConfig(**SIZES)
    model = build_model(config, Mesh.single(), ParallelConfig(), seed=seed)
    write_folder(folder, config, {name: p.detach() for name, p in model.named_parameters()})
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


@pytest.fixture
def hub(work, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    publish(tmp_path / "hub" / "tiny" / "model", work.folder / "tokenizer", seed=3)
    with serving(tmp_path / "hub") as hub:
        reach(monkeypatch, hub.url, tmp_path / "cache")
        yield hub


def words(work, start: str, run: str, steps: int) -> list[str]:
    return [
        *("sft", "--checkpoint.start", start, "--data.train", f'["{work.folder}/sft.jsonl"]'),
        *("--data.sequence_length", "256", "--train.steps", str(steps), "--run.folder", run),
        *("--run.device", "cpu", "--run.threads", "1", "--run.trackers", "[]"),
        *("--schedule.kind", "constant", "--schedule.warmup", "0"),
    ]


def test_a_name_brings_all_and_the_run_goes_on_with_its_commit(work, hub, tmp_path, capsys):
    commit = hub.commit("tiny/model")
    assert main(words(work, "tiny/model", "run", 2)) == 0
    said = capsys.readouterr().out
    assert "tokenizer.path is tiny/model, as tiny/model has it" in said
    assert "data.template is tokenizer, as tiny/model has it" in said
    config = read_toml(Path("run/config.toml"))
    assert config["checkpoint"]["start"] == config["tokenizer"]["path"] == f"tiny/model@{commit}"
    assert config["model"]["hidden_size"] == SIZES["hidden_size"]
    publish(hub.folder / "tiny" / "model", work.folder / "tokenizer", seed=4)  # the branch moves
    hub.asked.clear()
    assert main(words(work, "tiny/model", "run", 4)) == 0
    assert not hub.asked
    assert main(words(work, f"tiny/model@{commit}", "whole", 4)) == 0
    assert losses(Path("run")) == losses(Path("whole"))
    assert main(words(work, "tiny/model", "moved", 1)) == 0
    assert losses(Path("moved")) != losses(Path("whole"))[:1]
    capsys.readouterr()
    generate = [
        "generate",
        "--model",
        f"tiny/model@{commit}",
        "--prompt",
        '["red"]',
        "--run.device",
    ]
    assert main([*generate, "cpu", "--sampling.max_new_tokens", "3"]) == 0
    assert main(["convert", "--source", "run", "--target", "exported"]) == 0
    assert Path("exported/tokenizer.json").is_file()
    assert main(["convert", "--source", "tiny/model", "--target", "ours"]) == 0


def test_a_stage_takes_tokenizer_and_template_of_the_run_that_it_starts_from(work, hub, capsys):
    assert main([*words(work, "tiny/model", "run", 1), "--data.template", "alpaca"]) == 0
    capsys.readouterr()
    rankings = f'["{work.folder}/rankings.jsonl"]'
    more = ["rm", "--checkpoint.start", "run", "--data.train", rankings, "--run.folder", "rm"]
    assert main([*more, "--train.steps", "1", "--run.device", "cpu", "--run.threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "tokenizer.path is tiny/model, as run has it" in said
    assert "data.template is alpaca, as run has it" in said


def test_a_name_that_is_not_there_leaves_no_run(work, hub, capsys):
    for more in (["--checkpoint.start", "tiny/none"], ["--tokenizer.path", "tiny/none"]):
        assert main([*words(work, "tiny/model", "run", 1), *more]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"megalite: {more[0]} tiny/none: there is no such file or folder")
        assert said.count("\n") == 1
    assert not Path("run").exists()
