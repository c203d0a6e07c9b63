"""Published sizes of BLOOM."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "vocab_size": 250880,
    "norm": "layer_norm",
    "embedding_norm": True,
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "position": "alibi",
}
_KEYS = "hidden_size num_layers num_heads ffn_size"
_SIZES = {
    "bloom-560m": (1024, 24, 16, 4096),
    "bloom-1b1": (1536, 24, 16, 6144),
    "bloom-1b7": (2048, 24, 16, 8192),
    "bloom-3b": (2560, 30, 32, 10240),
    "bloom-7b1": (4096, 30, 32, 16384),
    "bloom-176b": (14336, 70, 112, 57344),
}

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2211.05100 table 3, config.json of bigscience/bloom*", BASE, _KEYS, _SIZES
) | sizes("for tests", BASE | {"vocab_size": 512}, _KEYS, {"bloom-tiny": (64, 2, 4, 256)})
