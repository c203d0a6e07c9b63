"""Published sizes of GPT-2 and GPT-3."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm": "layer_norm",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "position": "learned",
}
_KEYS = "hidden_size num_layers num_heads head_size ffn_size"
_GPT2 = {
    "gpt2": (768, 12, 12, 64, 3072),
    "gpt2-medium": (1024, 24, 16, 64, 4096),
    "gpt2-large": (1280, 36, 20, 64, 5120),
    "gpt2-xl": (1600, 48, 25, 64, 6400),
}
_GPT3 = {  # with two misprints put right: 24 heads of 1.3b, d_model 5140 of 13b
    "gpt3-125m": (768, 12, 12, 64, 3072),
    "gpt3-350m": (1024, 24, 16, 64, 4096),
    "gpt3-760m": (1536, 24, 16, 96, 6144),
    "gpt3-1.3b": (2048, 24, 16, 128, 8192),
    "gpt3-2.7b": (2560, 32, 32, 80, 10240),
    "gpt3-6.7b": (4096, 32, 32, 128, 16384),
    "gpt3-13b": (5120, 40, 40, 128, 20480),
    "gpt3-175b": (12288, 96, 96, 128, 49152),
}
_PRESET = BASE | {"activation": "gelu_tanh"}

PRESETS: dict[str, Preset] = (
    sizes(
        "config.json of openai-community's models",
        _PRESET | {"vocab_size": 50257, "max_positions": 1024},
        _KEYS,
        _GPT2,
    )
    | sizes(
        "arXiv:2005.14165 table 2.1; attention is dense in every layer here",
        _PRESET | {"vocab_size": 50257, "max_positions": 2048},
        _KEYS,
        _GPT3,
    )
    | sizes("for tests", _PRESET, _KEYS, {"gpt2-tiny": (64, 2, 4, 16, 96)})
)
