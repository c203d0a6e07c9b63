"""Published sizes of Pegasus."""

from typing import Any

from megalite.models.presets.mbart import BASE as _MBART
from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = _MBART | {
    "embedding_norm": False,
    "position": "sinusoid",
    "position_offset": 0,
}
_KEYS = (
    "vocab_size hidden_size num_encoder_layers num_layers num_heads ffn_size embedding_scale "
    "activation"
)

PRESETS: dict[str, Preset] = sizes(
    "arXiv:1912.08777, config.json of google/pegasus-large",
    BASE,
    _KEYS,
    {"pegasus-large": (96103, 1024, 16, 16, 16, 4096, 32.0, "relu")},
) | sizes("for tests", BASE, _KEYS, {"pegasus-tiny": (512, 64, 2, 2, 4, 96, 8.0, "relu")})
