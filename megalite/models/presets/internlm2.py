"""Published sizes of InternLM2."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"rope_base": 1000000.0, "max_positions": 32768, "tie_embeddings": False}
_KEYS = "vocab_size hidden_size num_layers num_heads num_kv_heads ffn_size"
_PUBLISHED = {
    "internlm2-1.8b": (92544, 2048, 24, 16, 8, 8192),
    "internlm2-7b": (92544, 4096, 32, 32, 8, 14336),
    "internlm2-20b": (92544, 6144, 48, 48, 8, 16384),
}

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2403.17297, config.json of internlm/internlm2-*", BASE, _KEYS, _PUBLISHED
) | sizes("for tests", BASE, _KEYS, {"internlm2-tiny": (512, 64, 2, 4, 2, 96)})
