"""Published sizes of GLM-4 and GLM-4-0414, the heirs of ChatGLM."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"rope_interleaved": True, "tie_embeddings": False}
_KEYS = "vocab_size hidden_size num_layers num_heads num_kv_heads head_size rotary_size ffn_size"

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2406.12793, config.json of THUDM/glm-4-9b-hf and glm-4-9b-chat-hf",
    BASE | {"qkv_bias": True, "norm_eps": 1.5625e-07},
    f"{_KEYS} rope_base max_positions",
    {
        "glm-4-9b": (151552, 4096, 40, 32, 2, 128, 64, 13696, 10000.0, 8192),
        "glm-4-9b-chat": (151552, 4096, 40, 32, 2, 128, 64, 13696, 5000000.0, 131072),
    },
) | sizes(
    "for tests",
    BASE | {"qkv_bias": True},
    _KEYS,
    {"glm-tiny": (512, 64, 2, 4, 2, 16, 8, 96)},
)
