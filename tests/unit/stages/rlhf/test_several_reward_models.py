"""Scores of several reward models: their sum, a guard among them, and runs with both."""

import json

import pytest
import torch

from megalite.cli import main
from megalite.distributed.mesh import Mesh
from megalite.stages.rlhf.scoring import Scoring
from megalite.stages.rules.config import GuardConfig
from megalite.training.checkpoint.manifest import read_manifest


def test_a_guard_alone_scores_what_it_finds_bad_and_what_rows_say():
    draw = torch.Generator().manual_seed(3)
    scores = 3 * torch.randn(11, 3, generator=draw)
    said = torch.arange(11) % 4 == 0
    weights = {"model": 2.0, "safety": 0.5, "style": -1.0}
    guard = GuardConfig(model="safety", below=0.15, column="risky")
    total, parts = Scoring(Mesh.single(), weights, guard=guard).joined(scores, {}, said)
    alone = 0
    for number, (model, safety, style) in enumerate(scores.tolist()):
        wanted = 2 * model - style
        if number % 4 == 0 or 1 / (1 + 2.718281828459045**-safety) < 0.15:
            wanted, alone = 0.5 * safety, alone + 1
        assert total[number].item() == pytest.approx(wanted, rel=1e-6)
    assert 3 < alone < 11
    assert parts["guarded"].sum() == alone
    assert torch.equal(parts["safety"], scores[:, 1])
    scores[5, 1] = torch.nan  # no answer is good for a guard that says nothing
    again, _ = Scoring(Mesh.single(), weights, guard=guard).joined(scores, {}, said)
    assert torch.equal(again.isnan(), torch.arange(11) == 5)


@pytest.fixture(scope="module")
def told(work):
    """A second reward model, of another size; rows that it guards; the words that say so."""
    small = ["--model.hidden_size", "8", "--model.num_layers", "1", "--train.steps", "1"]
    folder = work.run("rm", "small", "--data.train", f'["{work.folder}/rm.jsonl"]', *small)
    rows = [json.loads(line) for line in (work.folder / "prompts.jsonl").open()]
    work.write("guarded", [row | {"risky": n % 3 == 0} for n, row in enumerate(rows)])
    more = ["--reward_model", str(work.reward), "--reward.model_weight", "0.5"]
    more += ["--reward.models", f'{{ small = "{folder}" }}']
    return [*more, "--data.train", f'["{work.folder}/guarded.jsonl"]']


def test_a_run_has_a_metric_a_model_and_goes_on_bit_for_bit(work, told):
    more = [*told, "--reward.model_weights", "{ small = 3.0 }", "--reward.whiten_scores", "true"]
    rows = work.align("ppo", "two", *more, "--train.steps", "2")
    for row in rows:
        wanted = 0.5 * row["reward/model"] + 3 * row["reward/small"]
        assert row["reward"] == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    work.align("ppo", "again", *more, "--train.steps", "1")
    again = work.align("ppo", "again", *more, "--train.steps", "2")
    for name in ("loss", "reward", "reward/small", "grad_norm", "critic_grad_norm"):
        assert [row[name] for row in again] == [row[name] for row in rows]
    checkpoints = work.folder / "again" / "checkpoints"
    facts, _ = read_manifest(checkpoints / (checkpoints / "latest").read_text())
    assert "reward.models.small" in facts["run"]["sources"]
    other = ["--reward.models.small", str(work.reward), "--train.steps", "3"]
    assert main(work.align_words("ppo", "again", *more, *other)) == 2


def test_groups_are_scored_by_a_guard(work, told):
    more = [*told, "--reward.guard.model", "small", "--reward.guard.column", "risky"]
    more += ["--reward.guard.below", "0.4", "--rollout.answers", "2", "--train.steps", "1"]
    (row,) = work.align("grpo", "guard", *more)
    assert 0 < row["reward/guarded"] <= 1
    assert {"reward/model", "reward/small"} < row.keys()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--reward.models", '{ model = "rm" }'], "--reward.models 'model': another part"),
        (["--reward.models", '{ "a/b" = "rm" }'], "--reward.models 'a/b': must be a name of"),
        (["--reward.model_weights", "{ other = 2.0 }"], "in reward.models, which has small"),
        (["--reward.guard.model", "other"], "--reward.guard.model other: must be a name in"),
        (["--reward.guard.column", "risky"], "--reward.guard.column risky: needs reward.guard.mod"),
        (
            ["--reward.guard.model", "small", "--reward.guard.column", "none"],
            "--reward.guard.column none: no row of data.train has this key",
        ),
        (
            ["--reward.guard.model", "small", "--reward.guard.column", "prompt"],
            "; reward.guard.column must be true or false",
        ),
        (["--reward.models.small", "nowhere"], "nowhere"),
        (["--reward_model", ""], "--reward.model_weight 0.5: weighs the score of reward_model"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(work, told, capsys, more, says):
    capsys.readouterr()
    assert main(work.align_words("ppo", "refused", *told, *more)) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (work.folder / "refused").exists()
