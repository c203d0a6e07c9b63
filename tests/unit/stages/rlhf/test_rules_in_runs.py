"""Runs whose answers are scored by rules, beside a reward model or without one."""

import pytest

from megalite.cli import main


def test_ppo_learns_from_a_rule_without_a_reward_model(work):
    rows = work.align("ppo", "by rule", "--reward.function", f"{work.rewards}:short")
    assert len(rows) == 3
    for row in rows:
        assert row["reward"] < 0
        assert row["value_loss"] > 0
        assert not any(name.startswith("reward/") for name in row)


def test_a_score_of_several_parts_is_their_weighted_sum(work):
    functions = f'["exact_match", "{work.rewards}:short"]'
    more = ["--reward.function", functions, "--reward.weights", "[3.0, 0.5]"]
    more += ["--reward_model", str(work.reward), "--reward.model_weight", "2.0"]
    for row in work.align("ppo", "parts", *more, "--train.steps", "1"):
        parts = [row[f"reward/{name}"] for name in ("exact_match", "short", "model")]
        sum_of_parts = 3 * parts[0] + 0.5 * parts[1] + 2 * parts[2]
        assert row["reward"] == pytest.approx(sum_of_parts, rel=1e-5)


def test_a_function_named_as_another_part_of_a_score_counts_beside_it(work):
    own = work.folder / "named.py"
    own.write_text("def model(prompt, answer, row):\n    return 100.0\n")
    more = ["--reward_model", str(work.reward), "--train.steps", "1"]
    (row,) = work.align("ppo", "named", *more, "--reward.function", f"{own}:model")
    assert row[f"reward/{own}:model"] == 100
    assert row["reward"] == pytest.approx(100 + row["reward/model"], rel=1e-6)


def test_a_run_that_goes_on_says_that_a_file_of_rewards_was_changed(work, capsys):
    own = work.folder / "edited.py"
    more = ["--reward.function", f"{own}:f", "--rollout.answers", "2", "--train.steps"]
    said = []
    for steps, score in (("1", 0), ("2", 0), ("3", 1)):
        own.write_text(f"def f(prompt, answer, row):\n    return {score}\n")
        capsys.readouterr()
        work.align("grpo", "edited", *more, steps)
        lines = capsys.readouterr().out.splitlines()
        said.append([line for line in lines if line.startswith(f"going on with {own} ")])
    assert [len(lines) for lines in said] == [0, 0, 1]


def refused(capsys, words: list[str]) -> str:
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1
    return said


def test_a_fault_in_a_step_ends_the_run_with_its_row(work, capsys):
    """No line of metrics and no checkpoint of half a step."""
    words = work.align_words("ppo", "fault", "--reward.function", f"{work.rewards}:fails")
    said = refused(capsys, words)
    assert f"{work.rewards}:fails: raised RuntimeError: no such answer in line" in said
    assert f"to {work.folder}/prompts.jsonl:" in said
    assert not (work.folder / "fault" / "metrics.jsonl").exists()
    assert not list((work.folder / "fault" / "checkpoints").glob("step-*"))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--reward_model: must name a checkpoint, or --reward.function a rule"),
        (["--reward.function", "nowhere.py:f"], "--reward.function nowhere.py:f: no such file"),
        (["--reward.function", "{rewards}:f"], "there is no such function; the file has short"),
        (
            ["--reward.function", "exact_match", "--reward.rules.column", "target"],
            "prompts.jsonl:1: has no 'target', there is 'prompt', 'answers', 'answer'",
        ),
    ],
)
def test_what_is_missing_is_found_before_the_start(work, capsys, more, says):
    more = [word.replace("{rewards}", str(work.rewards)) for word in more]
    assert says in refused(capsys, work.align_words("ppo", "refused", *more))
    assert not (work.folder / "refused").exists()
