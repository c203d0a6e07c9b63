"""Qwen3: a norm of each head's queries and keys. Yang et al. 2025, arXiv:2505.09388."""

from dataclasses import replace
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.llama import FAMILY as LLAMA
from megalite.models.families.qwen2 import keys_of, values_of
from megalite.models.presets.qwen3 import PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    has_bias = theirs.get("attention_bias", False)
    biases = {"qkv_bias": has_bias, "attention_bias": has_bias}
    return ModelConfig(**values_of(theirs), **biases, query_key_norm=True)


FAMILY = replace(
    LLAMA,
    name="qwen3",
    architecture="Qwen3ForCausalLM",
    from_theirs=_from_theirs,
    to_theirs=lambda config: keys_of(config) | {"attention_bias": config.qkv_bias},
    presets=PRESETS,
)
