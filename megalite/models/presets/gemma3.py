"""Published sizes of Gemma 3, those of text alone."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm_eps": 1e-6,
    "norm_plus_one": True,
    "norm_position": "both",
    "query_key_norm": True,
    "activation": "gelu_tanh",
}
_PUBLISHED = BASE | {
    "vocab_size": 262144,
    "attention_scale": 256**-0.5,
    "windows": (512, 512, 512, 512, 512, 0),
    "rope_base": 1000000.0,
    "rope_window_base": 10000.0,
    "max_positions": 32768,
}
_TINY = BASE | {"vocab_size": 512, "windows": (16, 0), "rope_window_base": 100.0}
_KEYS = "hidden_size num_layers num_heads num_kv_heads head_size ffn_size embedding_scale"

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2503.19786, config.json of google/gemma-3-*",
    _PUBLISHED,
    _KEYS,
    {
        "gemma3-270m": (640, 18, 4, 1, 256, 2048, 640**0.5),
        "gemma3-1b": (1152, 26, 4, 1, 256, 6912, 1152**0.5),
    },
) | sizes("for tests", _TINY, _KEYS, {"gemma3-tiny": (64, 2, 4, 2, 16, 96, 8.0)})
