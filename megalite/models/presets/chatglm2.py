"""Published sizes of ChatGLM2-6B and ChatGLM3-6B."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "qkv_bias": True,
    "rope_interleaved": True,
    "tie_embeddings": False,
    "vocab_size": 65024,
}
_KEYS = "hidden_size num_layers num_heads num_kv_heads head_size rotary_size ffn_size"
_PUBLISHED = {
    "chatglm2-6b": (4096, 28, 32, 2, 128, 64, 13696),
    "chatglm3-6b": (4096, 28, 32, 2, 128, 64, 13696),
}

PRESETS: dict[str, Preset] = sizes(
    "config.json of THUDM/chatglm2-6b and THUDM/chatglm3-6b",
    BASE | {"max_positions": 32768},
    _KEYS,
    _PUBLISHED,
) | sizes("for tests", BASE, _KEYS, {"chatglm2-tiny": (64, 2, 4, 2, 16, 8, 96)})
