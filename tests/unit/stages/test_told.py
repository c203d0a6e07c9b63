"""A reward is read where it was learned: answers are written as the reward model's run was told."""

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from megalite.data.config import ConversationConfig
from megalite.data.tokenizers.load import load_tokenizer
from megalite.errors import ConfigError
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.told import check_reward_model, check_same_writing, notes_of_writing


def run_of(folder, *lines: str):
    folder.mkdir(exist_ok=True)
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


def tokenizer_with(path, *words: str):
    numbered = {word: number for number, word in enumerate(words)}
    Tokenizer(WordLevel(numbered, unk_token="red")).save(str(path))
    return load_tokenizer(path)


def test_a_reward_model_that_reads_other_tokens_is_refused(tmp_path):
    """The same ones in another file are the same."""
    own, other = (tmp_path / f"{name}.json" for name in ("own", "other"))
    tokenizer = tokenizer_with(own, "red", "cat", "dog")
    config = PPOConfig(tokenizer={"path": str(own)})
    run, _ = run_of(tmp_path / "run", "[tokenizer]", f'path = "{other}"')
    for words in (("red", "dog", "cat"), ("red", "dog"), ("red", "cat", "dog", "bird")):
        tokenizer_with(other, *words)
        with pytest.raises(ConfigError, match="--reward.models.a .*: its token . is '.*', not '"):
            check_reward_model(config, tokenizer, "reward.models.a", run)
    tokenizer_with(other, "red", "cat", "dog")
    other.write_text(other.read_text() + "\n")
    check_reward_model(config, tokenizer, "reward.models.a", run)


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
