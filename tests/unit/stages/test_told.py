"""A reward is read where it was learned: answers are written as the reward model's run was told."""

import pytest

from megalite.data.config import ConversationConfig
from megalite.errors import ConfigError
from megalite.stages.told import check_same_writing, notes_of_writing


def run_of(folder, *lines: str):
    (folder / "config.toml").write_text("\n".join(["[data]", *lines]) + "\n")
    checkpoint = folder / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)
    return str(folder), str(checkpoint)


def test_answers_that_a_reward_model_does_not_know_are_refused(tmp_path):
    for path in run_of(tmp_path, 'template = "alpaca"', "prefix = false", "packed = true"):
        check_same_writing(ConversationConfig(template="alpaca", packed=False), path)
        with pytest.raises(ConfigError, match="--data.template 'plain': must be 'alpaca', as"):
            check_same_writing(ConversationConfig(), path)
        with pytest.raises(ConfigError, match="--data.prefix True: must be False"):
            check_same_writing(ConversationConfig(template="alpaca", prefix=True), path)


def test_a_start_that_was_told_otherwise_is_said(tmp_path):
    run, _ = run_of(tmp_path, 'template = "vicuna"')
    assert notes_of_writing(ConversationConfig(template="vicuna"), run) == []
    (note,) = notes_of_writing(ConversationConfig(), run)
    assert note == f"data.template is 'plain'; {run} was trained with 'vicuna'"


def test_pretraining_and_folders_without_a_config_say_nothing_of_conversations(tmp_path):
    assert notes_of_writing(ConversationConfig(prefix=True), "") == []
    assert notes_of_writing(ConversationConfig(prefix=True), str(tmp_path)) == []
    run, _ = run_of(tmp_path, 'objective = "prefix_lm"', "prefix = false")
    assert notes_of_writing(ConversationConfig(prefix=True), run) == []
