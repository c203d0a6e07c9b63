"""Published sizes of PaLM and U-PaLM."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {
    "norm": "layer_norm",
    "norm_bias": False,
    "parallel_block": "one_norm",
    "num_kv_heads": 1,
}
_KEYS = "hidden_size num_layers num_heads head_size ffn_size logit_scale"
_SIZES = {
    "8b": (4096, 32, 16, 256, 16384, 4096**-0.5),
    "62b": (8192, 64, 32, 256, 32768, 8192**-0.5),
    "540b": (18432, 118, 48, 256, 73728, 18432**-0.5),
}

PRESETS: dict[str, Preset] = (
    sizes(
        "arXiv:2204.02311 table 1 and section 2",
        BASE | {"vocab_size": 256000},
        _KEYS,
        {f"palm-{size}": row for size, row in _SIZES.items()},
    )
    | sizes(
        "arXiv:2210.11399: PaLM's sizes, trained further as a prefix decoder",
        BASE | {"vocab_size": 256000},
        _KEYS,
        {f"u-palm-{size}": row for size, row in _SIZES.items()},
    )
    | sizes("for tests", BASE, _KEYS, {"palm-tiny": (64, 2, 4, 24, 256, 0.125)})
)
