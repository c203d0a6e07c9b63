"""Published sizes of GLM-130B."""

import math
from typing import Any

from megalite.models.presets.chatglm import BASE as CHATGLM
from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = CHATGLM | {"activation": "gelu", "gated": True, "rope_axes": 1}
_KEYS = "vocab_size hidden_size num_layers num_heads ffn_size residual_scale"

PRESETS: dict[str, Preset] = sizes(
    "configs/model_glm_130b.sh of THUDM/GLM-130B",
    BASE,
    _KEYS,
    {"glm-130b": (150528, 12288, 70, 96, 32768, math.sqrt(140))},
) | sizes("for tests", BASE, _KEYS, {"glm-130b-tiny": (512, 64, 2, 4, 96, 2.0)})
