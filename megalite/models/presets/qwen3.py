"""Published sizes of Qwen3, the dense ones."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "vocab_size": 151936,
    "query_key_norm": True,
    "norm_eps": 1e-6,
    "rope_base": 1000000.0,
    "max_positions": 40960,
}
_KEYS = "hidden_size num_layers num_heads num_kv_heads head_size ffn_size tie_embeddings"
_PUBLISHED = {
    "qwen3-0.6b": (1024, 28, 16, 8, 128, 3072, True),
    "qwen3-1.7b": (2048, 28, 16, 8, 128, 6144, True),
    "qwen3-4b": (2560, 36, 32, 8, 128, 9728, True),
    "qwen3-8b": (4096, 36, 32, 8, 128, 12288, False),
    "qwen3-14b": (5120, 40, 40, 8, 128, 17408, False),
    "qwen3-32b": (5120, 64, 64, 8, 128, 25600, False),
}

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2505.09388 table 1, config.json of Qwen/Qwen3-*", BASE, _KEYS, _PUBLISHED
) | sizes(
    "for tests",
    BASE | {"vocab_size": 512},
    _KEYS,
    {"qwen3-tiny": (64, 2, 4, 2, 24, 96, True)},
)
