"""Qwen2 and Qwen2.5: LLaMA with biases of query, key and value, and windows in its last layers.

Yang et al. 2024, arXiv:2407.10671 and arXiv:2412.15115.
"""

from dataclasses import replace
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.llama import FAMILY as LLAMA
from megalite.models.families.llama import shared_keys, shared_values
from megalite.models.families.windows import read_windows, write_windows
from megalite.models.presets.qwen2 import PRESETS


def values_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of a config's keys; Qwen3's has the same."""
    values = shared_values(theirs)
    layers, full = values["num_layers"], theirs.get("max_window_layers", 28)
    has_window = [full is not None and layer >= full for layer in range(layers)]
    windows = read_windows(theirs, has_window, 4096)
    return values | {"windows": windows if theirs.get("use_sliding_window", False) else ()}


def keys_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`values_of`."""
    windows = [config.window_of(layer) for layer in range(config.num_layers)]
    full = next((layer for layer, window in enumerate(windows) if window), config.num_layers)
    said = {"use_sliding_window": any(windows), "max_window_layers": full}
    return shared_keys(config) | write_windows(config) | said


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    keys = keys_of(config)
    if config.head_dim * config.num_heads == config.hidden_size:
        del keys["head_dim"]  # which only newer versions of transformers read
    return keys


FAMILY = replace(
    LLAMA,
    name="qwen2",
    architecture="Qwen2ForCausalLM",
    from_theirs=lambda theirs: ModelConfig(**values_of(theirs), qkv_bias=True),
    to_theirs=_to_theirs,
    fixed={"hidden_act": "silu", "use_mrope": False},
    presets=PRESETS,
)
