"""GRPO's command: going on bit for bit, its kinds, and what it refuses."""

import pytest

from megalite.cli import main
from megalite.stages.rlhf.text import Text

CLOCKS = ("step_s", "rollout_s", "tokens_per_s", "memory_gib")
GROUPS = ("--rollout.answers", "4", "--update.mini_batches", "2")


def exact(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def short(work) -> list[str]:
    return ["--reward.function", f"{work.rewards}:short", *GROUPS]


def test_a_run_goes_on_bit_for_bit(work):
    """Answers, advantages, other prompts in place of equal groups, an adaptive coefficient."""
    more = [*short(work), "--rollout.redraws", "1", "--update.leave_out_equal", "true"]
    more += ["--kl.target", "0.5", "--kl.horizon", "16", "--rollout.max_new_tokens", "2"]
    whole = work.align("grpo", "whole", *more)
    work.align("grpo", "resumed", *more, "--train.steps", "2")
    again = work.align("grpo", "resumed", *more)
    assert exact(again) == exact(whole)
    assert any(row["redrawn_groups"] for row in whole)
    assert len({row["kl_coefficient"] for row in whole}) == 3


def test_a_reward_model_scores_groups_and_text_is_another_in_each_update(work, monkeypatch):
    read, make = [], Text.make

    def recorded(text, examples, sample_ids):
        read.extend(sample_ids)
        return make(text, examples, sample_ids)

    monkeypatch.setattr(Text, "make", recorded)
    prepare = ["data", "prepare", "--source", f'["{work.folder}/text.jsonl"]', "--processes", "1"]
    work.write("text", [{"text": "the red cat sees a dog " * 20}] * 8)
    prepare += ["--tokenizer", str(work.tokenizer), "--output", f"{work.folder}/store"]
    assert main(prepare) == 0
    more = ["--reward_model", str(work.reward), *GROUPS, "--advantage.kind", "rloo"]
    more += ["--update.pretrain_coefficient", "0.5", "--pretraining.sequence_length", "12"]
    more += ["--pretraining.train", f'["{work.folder}/store"]', "--train.steps", "2"]
    rows = work.align("grpo", "model", *more)
    assert all(row["pretraining_loss"] > 0 for row in rows)
    assert read == [0, *range(2 * 2 * 4)]  # the first is tried before the start


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rollout.answers", "1"], "--rollout.answers 1: advantage.kind grpo compares answers"),
        (
            ["--rollout.answers", "1", "--advantage.kind", "reinforce_pp", "--rollout.redraws"]
            + ["1", "--update.mini_batches", "1"],
            "--rollout.answers 1: a group of one answer is always equal",
        ),
        (["--update.mini_batches", "3"], "must divide train.global_batch_size 4 x rollout.answer"),
        (["--train.spikes.policy", "skip"], "--train.spikes.policy skip"),
        (["--critic_learning_rate", "1e-3"], "critic_learning_rate"),
        (["--update.value_clip", "0.1"], "value_clip"),
        (["--advantage.kind", "gae"], "--advantage.kind"),
        (
            ["--parallel.timeout_s", "12"],
            "--reward.time_limit_s 10: must be less than 9, after which a process that stands",
        ),
        (["--train.micro_batch_size", "32"], "8, whose 4 answers each fill whole micro-batches"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(work, capsys, more, says):
    capsys.readouterr()
    assert main(work.align_words("grpo", "refused", *short(work), *more)) == 2
    said = capsys.readouterr().err.strip()
    assert says in said
    assert len(said.splitlines()) == 1
    assert not (work.folder / "refused").exists()
