"""Published sizes of T5Gemma whose two stacks are equal: those of Gemma 2, twice."""

from typing import Any

from megalite.models.presets.gemma2 import BASE as GEMMA2
from megalite.models.presets.preset import Preset, sizes

BASE: dict[str, Any] = GEMMA2 | {"separate_embeddings": True, "score_cap": 50.0, "logit_cap": 30.0}
_PUBLISHED = BASE | {"vocab_size": 256000, "windows": (4096, 0), "max_positions": 8192}
_TINY = BASE | {"vocab_size": 512, "windows": (16, 0)}
_KEYS = (
    "hidden_size num_encoder_layers num_layers num_heads num_kv_heads head_size ffn_size "
    "attention_scale embedding_scale"
)

PRESETS: dict[str, Preset] = sizes(
    "arXiv:2504.06225 table 1, arXiv:2408.00118 table 1",
    _PUBLISHED,
    _KEYS,
    {
        "t5gemma-2b-2b": (2304, 26, 26, 8, 4, 256, 9216, 256**-0.5, 2304**0.5),
        "t5gemma-9b-9b": (3584, 42, 42, 16, 8, 256, 14336, 256**-0.5, 3584**0.5),
    },
) | sizes("for tests", _TINY, _KEYS, {"t5gemma-tiny": (64, 2, 2, 4, 2, 16, 96, 0.25, 8.0)})
