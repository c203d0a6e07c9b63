"""Published sizes of OPT."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "vocab_size": 50272,
    "norm": "layer_norm",
    "activation": "relu",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "position": "learned",
    "position_offset": 2,
}
_KEYS = "hidden_size num_layers num_heads ffn_size"
_SOURCE = "arXiv:2205.01068 table 1, config.json of facebook/opt-*"
_SIZES = {
    "opt-125m": (768, 12, 12, 3072),
    "opt-1.3b": (2048, 24, 32, 8192),
    "opt-2.7b": (2560, 32, 32, 10240),
    "opt-6.7b": (4096, 32, 32, 16384),
    "opt-13b": (5120, 40, 40, 20480),
    "opt-30b": (7168, 48, 56, 28672),
    "opt-66b": (9216, 64, 72, 36864),
    "opt-175b": (12288, 96, 96, 49152),
}
_POST = BASE | {"norm_position": "post", "final_norm": False, "embedding_size": 512}

PRESETS: dict[str, Preset] = (
    sizes(_SOURCE, BASE, _KEYS, _SIZES)
    | sizes(_SOURCE, _POST, _KEYS, {"opt-350m": (1024, 24, 16, 4096)})
    | sizes("for tests", BASE | {"vocab_size": 512}, _KEYS, {"opt-tiny": (64, 2, 4, 96)})
)
