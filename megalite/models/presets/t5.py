"""Published sizes of T5 1.0 and 1.1, Flan-T5, mT5, UL2 and Flan-UL2."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"norm_eps": 1e-6, "attention_scale": 1.0, "position": "relative"}
_KEYS = "hidden_size num_encoder_layers num_layers num_heads head_size ffn_size"
_FIRST = {
    "small": (512, 6, 6, 8, 64, 2048),
    "base": (768, 12, 12, 12, 64, 3072),
    "large": (1024, 24, 24, 16, 64, 4096),
    "3b": (1024, 24, 24, 32, 128, 16384),
    "11b": (1024, 24, 24, 128, 128, 65536),
}
_SECOND = {
    "small": (512, 8, 8, 6, 64, 1024),
    "base": (768, 12, 12, 12, 64, 2048),
    "large": (1024, 24, 24, 16, 64, 2816),
    "xl": (2048, 24, 24, 32, 64, 5120),
    "xxl": (4096, 24, 24, 64, 64, 10240),
}


def _presets() -> dict[str, Preset]:
    relu = BASE | {"vocab_size": 32128, "activation": "relu", "gated": False}
    gelu = BASE | {"vocab_size": 32128, "activation": "gelu_tanh", "tie_embeddings": False}
    found = sizes("for tests", gelu, _KEYS, {"t5-tiny": (64, 2, 2, 4, 16, 96)})
    for size, row in _FIRST.items():
        tied = relu | {"logit_scale": row[0] ** -0.5}
        found |= sizes("arXiv:1910.10683 section 3.7", tied, _KEYS, {f"t5-{size}": row})
    for name, source in (
        ("t5-v1.1", "google-research/text-to-text-transfer-transformer released_checkpoints.md"),
        ("flan-t5", "arXiv:2210.11416, config.json of google/flan-t5-*"),
    ):
        rows = {f"{name}-{size}": row for size, row in _SECOND.items()}
        found |= sizes(source, gelu, _KEYS, rows)
    many = gelu | {"vocab_size": 250112}  # in the files; the vocabulary itself has 250100
    rows = {f"mt5-{size}": row for size, row in _SECOND.items()}
    found |= sizes("arXiv:2010.11934, config.json of google/mt5-*", many, _KEYS, rows)
    rows = dict.fromkeys(("ul2", "flan-ul2"), (4096, 32, 32, 16, 256, 16384))
    silu = gelu | {"activation": "silu"}
    return found | sizes("arXiv:2205.05131, config.json of google/ul2", silu, _KEYS, rows)


PRESETS: dict[str, Preset] = _presets()
