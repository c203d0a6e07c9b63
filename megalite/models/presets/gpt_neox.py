"""Published sizes of GPT-NeoX-20B and Pythia."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm": "layer_norm",
    "parallel_block": "two_norms",
    "activation": "gelu",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "tie_embeddings": False,
}
_KEYS = "vocab_size hidden_size num_layers num_heads rotary_size ffn_size"
_PYTHIA = {
    "pythia-70m": (50304, 512, 6, 8, 16, 2048),
    "pythia-160m": (50304, 768, 12, 12, 16, 3072),
    "pythia-410m": (50304, 1024, 24, 16, 16, 4096),
    "pythia-1b": (50304, 2048, 16, 8, 64, 8192),
    "pythia-1.4b": (50304, 2048, 24, 16, 32, 8192),
    "pythia-2.8b": (50304, 2560, 32, 32, 20, 10240),
    "pythia-6.9b": (50432, 4096, 32, 32, 32, 16384),
    "pythia-12b": (50688, 5120, 36, 40, 32, 20480),
}

PRESETS: dict[str, Preset] = (
    sizes("arXiv:2304.01373 table 1, config.json of EleutherAI/pythia-*", BASE, _KEYS, _PYTHIA)
    | sizes(
        "arXiv:2204.06745, config.json of EleutherAI/gpt-neox-20b",
        BASE | {"activation": "gelu_tanh"},
        _KEYS,
        {"gpt-neox-20b": (50432, 6144, 44, 64, 24, 24576)},
    )
    | sizes("for tests", BASE, _KEYS, {"gpt-neox-tiny": (512, 64, 2, 4, 4, 96)})
)
