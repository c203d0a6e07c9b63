"""The published size of GPT-J."""

from typing import Any

from megalite.models.presets.moss import BASE as _CODEGEN
from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = _CODEGEN  # which was built on GPT-J
_KEYS = "vocab_size hidden_size num_layers num_heads rotary_size ffn_size"

PRESETS: dict[str, Preset] = sizes(
    "kingoflolz/mesh-transformer-jax, config.json of EleutherAI/gpt-j-6b",
    BASE,
    _KEYS,
    {"gpt-j-6b": (50400, 4096, 28, 16, 64, 16384)},
) | sizes("for tests", BASE, _KEYS, {"gptj-tiny": (512, 64, 2, 4, 8, 96)})
