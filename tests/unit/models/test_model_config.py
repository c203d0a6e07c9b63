"""What a model can't be is refused by key, with what came."""

import pytest

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"norm_position": "both", "parallel_block": "one_norm"},
            "--model.norm_position both: needs parallel_block no, came one_norm",
        ),
        (
            {"norm_plus_one": True, "norm": "layer_norm"},
            "--model.norm_plus_one true: needs norm rms_norm, came layer_norm",
        ),
        (
            {"rope_window_base": 5e3, "windows": (0, 0)},
            "--model.rope_window_base 5000: needs windows, came none",
        ),
        (
            {"score_cap": 50.0, "position": "alibi"},
            "--model.score_cap 50: needs positions without a bias, came alibi",
        ),
    ],
)
def test_options_that_exclude_each_other_are_named(values: dict, says: str):
    with pytest.raises(ConfigError, match=says):
        ModelConfig(**values)


def test_a_pattern_of_windows_repeats_over_the_layers():
    config = ModelConfig(windows=[8, 0, 4], num_layers=7)
    assert [config.window_of(layer) for layer in range(7)] == [8, 0, 4, 8, 0, 4, 8]
    assert ModelConfig(**config.model_dump(mode="json")) == config
    assert ModelConfig().window_of(3) == 0
