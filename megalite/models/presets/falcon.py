"""Published sizes of Falcon."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "vocab_size": 65024,
    "norm": "layer_norm",
    "parallel_block": "one_norm",
    "activation": "gelu",
    "gated": False,
}
_KEYS = "hidden_size num_layers num_heads num_kv_heads ffn_size parallel_block"
_SIZES = {
    "falcon-7b": (4544, 32, 71, 1, 18176, "one_norm"),
    "falcon-40b": (8192, 60, 128, 8, 32768, "two_norms"),
    "falcon-180b": (14848, 80, 232, 8, 59392, "two_norms"),
}

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2311.16867, config.json of tiiuae/falcon-*", BASE, _KEYS, _SIZES
) | sizes(
    "for tests",
    BASE | {"vocab_size": 512},
    _KEYS,
    {"falcon-tiny": (64, 2, 4, 2, 96, "two_norms")},
)
