"""Published sizes of Qwen2 and Qwen2.5."""

from typing import Any

from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = {"qkv_bias": True, "norm_eps": 1e-6, "rope_base": 1000000.0}
_KEYS = (
    "vocab_size hidden_size num_layers num_heads num_kv_heads ffn_size tie_embeddings max_positions"
)
_SECOND = {
    "qwen2-0.5b": (151936, 896, 24, 14, 2, 4864, True, 131072),
    "qwen2-1.5b": (151936, 1536, 28, 12, 2, 8960, True, 131072),
    "qwen2-7b": (152064, 3584, 28, 28, 4, 18944, False, 131072),
}
_HALF = {
    "qwen2.5-0.5b": (151936, 896, 24, 14, 2, 4864, True, 32768),
    "qwen2.5-1.5b": (151936, 1536, 28, 12, 2, 8960, True, 131072),
    "qwen2.5-3b": (151936, 2048, 36, 16, 2, 11008, True, 32768),
    "qwen2.5-7b": (152064, 3584, 28, 28, 4, 18944, False, 131072),
}

PRESETS: dict[str, Preset] = (
    sizes("arXiv:2407.10671 table 1, config.json of Qwen/Qwen2-*", BASE, _KEYS, _SECOND)
    | sizes("arXiv:2412.15115, config.json of Qwen/Qwen2.5-*", BASE, _KEYS, _HALF)
    | sizes("for tests", BASE, _KEYS, {"qwen2-tiny": (512, 64, 2, 4, 2, 96, True, 256)})
)
