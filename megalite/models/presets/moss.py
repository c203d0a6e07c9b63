"""Published sizes of MOSS, and CodeGen on which it is built."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm": "layer_norm",
    "parallel_block": "one_norm",
    "activation": "gelu_tanh",
    "gated": False,
    "ffn_bias": True,
    "rope_interleaved": True,
    "tie_embeddings": False,
    "head_bias": True,
}
_KEYS = "vocab_size hidden_size num_layers num_heads rotary_size ffn_size"
_PUBLISHED = {"moss-moon-003": (107008, 6144, 34, 24, 64, 24576)}
_CODEGEN = {
    "codegen-350m": (51200, 1024, 20, 16, 32, 4096),
    "codegen-2b": (51200, 2560, 32, 32, 64, 10240),
    "codegen-6b": (51200, 4096, 33, 16, 64, 16384),
    "codegen-16b": (51200, 6144, 34, 24, 64, 24576),
}

PRESETS: dict[str, Preset] = (
    sizes("config.json of OpenMOSS-Team/moss-moon-003-base", BASE, _KEYS, _PUBLISHED)
    | sizes("config.json of Salesforce's models", BASE, _KEYS, _CODEGEN)
    | sizes("for tests", BASE, _KEYS, {"moss-tiny": (512, 64, 2, 4, 8, 96)})
)
