"""Published sizes of GLM-4-0414."""

from typing import Any

from megalite.models.presets.glm import BASE as _GLM
from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = _GLM | {"norm_position": "both"}
_KEYS = (
    "vocab_size hidden_size num_layers num_heads num_kv_heads head_size rotary_size ffn_size "
    "qkv_bias"
)
_PUBLISHED = {
    "glm-4-9b-0414": (151552, 4096, 40, 32, 2, 128, 64, 13696, True),
    "glm-4-32b-0414": (151552, 6144, 61, 48, 2, 128, 64, 23040, False),
}

PRESETS: dict[str, Preset] = sizes(
    "config.json of THUDM/GLM-4-*-0414", BASE | {"max_positions": 32768}, _KEYS, _PUBLISHED
) | sizes("for tests", BASE, _KEYS, {"glm4-tiny": (512, 64, 2, 4, 2, 16, 8, 96, True)})
