"""Published sizes of Gemma 2."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm_eps": 1e-6,
    "norm_plus_one": True,
    "norm_position": "both",
    "activation": "gelu_tanh",
}
_PUBLISHED = BASE | {
    "vocab_size": 256000,
    "windows": (4096, 0),
    "score_cap": 50.0,
    "logit_cap": 30.0,
    "max_positions": 8192,
}
_TINY = BASE | {"vocab_size": 512, "windows": (16, 0), "score_cap": 50.0, "logit_cap": 30.0}
_KEYS = (
    "hidden_size num_layers num_heads num_kv_heads head_size ffn_size attention_scale "
    "embedding_scale"
)

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2408.00118 table 1, config.json of google/gemma-2-*",
    _PUBLISHED,
    _KEYS,
    {
        "gemma2-2b": (2304, 26, 8, 4, 256, 9216, 256**-0.5, 2304**0.5),
        "gemma2-9b": (3584, 42, 16, 8, 256, 14336, 256**-0.5, 3584**0.5),
        "gemma2-27b": (4608, 46, 32, 16, 128, 36864, 144**-0.5, 4608**0.5),
    },
) | sizes("for tests", _TINY, _KEYS, {"gemma2-tiny": (64, 2, 4, 2, 16, 96, 0.25, 8.0)})
