"""What other trainers call a key: answered with ours, and told by the documentation."""

from pathlib import Path

import pytest

from megalite.config.elsewhere import HUGGING_FACE, MEGATRON, ours_for
from megalite.config.load import load
from megalite.config.section import all_keys
from megalite.errors import ConfigError
from megalite.stages.dpo import DPOConfig
from megalite.stages.ppo import PPOConfig
from megalite.stages.pretrain import PretrainConfig
from megalite.stages.sft import SFTConfig

DOCS = Path(__file__).parents[3] / "docs"
KEYS = {key for cls in (PretrainConfig, SFTConfig, DPOConfig, PPOConfig) for key in all_keys(cls)}


@pytest.mark.parametrize(
    ("trainer", "page", "prefix"),
    [(MEGATRON, "from-megatron.md", "--"), (HUGGING_FACE, "from-hugging-face.md", "")],
)
def test_each_name_is_a_key_and_a_row_of_the_page(trainer, page, prefix):
    assert {ours.key for ours in trainer.names.values()} <= KEYS
    rows = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| `")]
    for name, (key, note) in trainer.names.items():
        theirs = f"--{name.replace('_', '-')}" if prefix else name
        assert f"| `{theirs}` | `{key}` | {note} |".replace("|  |", "| |") in rows


@pytest.mark.parametrize(
    ("cls", "key", "says"),
    [
        (PretrainConfig, "--lr", "Megatron-LM's lr is optimizer.learning_rate here"),
        (PretrainConfig, "--tensor-model-parallel-size", "is parallel.tp here"),
        (SFTConfig, "--train.warmup_steps", r"is schedule.warmup here \('2000 steps'\)"),
        (SFTConfig, "--kl_coef", "no such key; (the config has|did you mean)"),
    ],
)
def test_a_key_of_another_trainer_is_answered_with_ours(cls, key, says):
    with pytest.raises(ConfigError, match=says):
        load(cls, None, [key, "2"])


def test_a_key_that_this_config_lacks_is_not_named():
    assert ours_for("kl_coef", {"train.steps"}) is None
