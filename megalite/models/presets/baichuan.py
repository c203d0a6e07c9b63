"""Published sizes of Baichuan 1 and 2."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"norm_eps": 1e-6, "tie_embeddings": False, "max_positions": 4096}
SECOND = 125696  # Baichuan 2's vocabulary
_KEYS = "vocab_size hidden_size num_layers num_heads ffn_size position normalised_head"
_PUBLISHED = {
    "baichuan-7b": (64000, 4096, 32, 32, 11008, "rope", False),
    "baichuan-13b": (64000, 5120, 40, 40, 13696, "alibi", False),
    "baichuan2-7b": (SECOND, 4096, 32, 32, 11008, "rope", True),
    "baichuan2-13b": (SECOND, 5120, 40, 40, 13696, "alibi", True),
}
_TINY = {
    "baichuan-tiny": (512, 64, 2, 4, 96, "alibi", False),
    "baichuan2-tiny": (512, 64, 2, 4, 96, "alibi", True),
}

PRESETS: dict[str, Preset] = sizes(
    "config.json of baichuan-inc's models", BASE, _KEYS, _PUBLISHED
) | sizes("for tests", BASE, _KEYS, _TINY)
