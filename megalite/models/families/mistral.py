"""Mistral: LLaMA with a window. Jiang et al. 2023, arXiv:2310.06825."""

from dataclasses import replace
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.llama import FAMILY as LLAMA
from megalite.models.families.llama import shared_keys, shared_values
from megalite.models.families.windows import read_windows, write_windows
from megalite.models.presets.mistral import PRESETS

WIDTH = 4096  # of a config without the key, as in transformers


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    values = shared_values(theirs)
    windows = read_windows(theirs, [True] * values["num_layers"], WIDTH)
    if len(windows) > 1:
        raise ValueError("layer_types must be one kind here: with several, a model is no Mistral")
    return ModelConfig(**values, windows=windows)


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return shared_keys(config) | {"sliding_window": write_windows(config)["sliding_window"]}


FAMILY = replace(
    LLAMA,
    name="mistral",
    architecture="MistralForCausalLM",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    presets=PRESETS,
)
