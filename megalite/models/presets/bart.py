"""Published sizes of BART."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "vocab_size": 50265,
    "norm": "layer_norm",
    "norm_position": "post",
    "embedding_norm": True,
    "final_norm": False,
    "activation": "gelu",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "position": "learned",
    "max_positions": 1024,
    "position_offset": 2,
}
_KEYS = "hidden_size num_encoder_layers num_layers num_heads ffn_size"
_SIZES = {"bart-base": (768, 6, 6, 12, 3072), "bart-large": (1024, 12, 12, 16, 4096)}

PRESETS: dict[str, Preset] = sizes(
    "config.json of facebook/bart-base and facebook/bart-large", BASE, _KEYS, _SIZES
) | sizes("for tests", BASE | {"vocab_size": 512}, _KEYS, {"bart-tiny": (64, 2, 2, 4, 96)})
