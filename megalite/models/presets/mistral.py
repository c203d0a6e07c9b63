"""Published sizes of Mistral."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"tie_embeddings": False}
_KEYS = (
    "vocab_size hidden_size num_layers num_heads num_kv_heads head_size ffn_size windows "
    "rope_base max_positions"
)
_PUBLISHED = {
    "mistral-7b-v0.1": (32000, 4096, 32, 32, 8, 128, 14336, (4096,), 10000.0, 32768),
    "mistral-7b-v0.3": (32768, 4096, 32, 32, 8, 128, 14336, (), 1000000.0, 32768),
    "mistral-nemo": (131072, 5120, 40, 32, 8, 128, 14336, (), 1000000.0, 131072),
}

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2310.06825 table 1, config.json of mistralai's models", BASE, _KEYS, _PUBLISHED
) | sizes(
    "for tests",
    BASE,
    _KEYS,
    {"mistral-tiny": (512, 64, 2, 4, 2, 16, 96, (16,), 10000.0, 256)},
)
