"""Published sizes of ChatGLM-6B."""

import math
from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm": "layer_norm",
    "norm_position": "post",
    "embedding_norm": True,
    "final_norm": False,
    "activation": "gelu_tanh",
    "gated": False,
    "qkv_bias": True,
    "attention_bias": True,
    "ffn_bias": True,
    "rope_axes": 2,
}
_KEYS = "vocab_size hidden_size num_layers num_heads ffn_size residual_scale"

PRESETS: dict[str, Preset] = sizes(
    "config.json of THUDM/chatglm-6b",
    BASE,
    _KEYS,
    {"chatglm-6b": (130528, 4096, 28, 32, 16384, math.sqrt(56))},
) | sizes("for tests", BASE, _KEYS, {"chatglm-tiny": (512, 64, 2, 4, 96, 2.0)})
