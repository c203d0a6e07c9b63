"""Published sizes of mBART."""

from typing import Any

from megalite.models.presets.bart import BASE as _BART
from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = _BART | {"norm_position": "pre", "final_norm": True}
_KEYS = "vocab_size hidden_size num_encoder_layers num_layers num_heads ffn_size"
_SCALED = BASE | {"embedding_scale": 32.0}

PRESETS: dict[str, Preset] = (
    sizes(
        "arXiv:2001.08210, config.json of facebook/mbart-large-cc25",
        _SCALED,
        _KEYS,
        {"mbart-large-cc25": (250027, 1024, 12, 12, 16, 4096)},
    )
    | sizes(
        "arXiv:2008.00401, config.json of facebook/mbart-large-50",
        _SCALED | {"activation": "relu"},
        _KEYS,
        {"mbart-large-50": (250054, 1024, 12, 12, 16, 4096)},
    )
    | sizes("for tests", BASE, _KEYS, {"mbart-tiny": (512, 64, 2, 2, 4, 96)})
)
