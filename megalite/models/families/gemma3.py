"""Gemma 3, text: windows in five layers of six, a base of RoPE's angles for either kind.

Gemma team 2025, arXiv:2503.19786.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.llama import FAMILY as LLAMA
from megalite.models.families.llama import shared_keys, sizes_of
from megalite.models.families.rope import read_rope, write_rope
from megalite.models.families.table import Family
from megalite.models.families.windows import read_windows, write_windows
from megalite.models.presets.gemma3 import BASE, PRESETS


def values_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of a config's keys but RoPE and windows; Gemma 2's has the same."""
    has_bias = theirs.get("attention_bias", False)
    values = sizes_of(theirs)
    read = ("tie_word_embeddings", "query_pre_attn_scalar", "final_logit_softcapping")
    is_tied, scalar, cap = (theirs.get(key) for key in read)
    return values | {
        "tie_embeddings": is_tied is not False,
        "embedding_scale": values["hidden_size"] ** 0.5,
        "attention_scale": (scalar or 256) ** -0.5,
        "logit_cap": cap or 0.0,
        "qkv_bias": has_bias,
        "attention_bias": has_bias,
    }


def keys_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`values_of`."""
    return shared_keys(config) | {
        "query_pre_attn_scalar": round(config.scale**-2),
        "final_logit_softcapping": config.logit_cap or None,
        "attention_bias": config.qkv_bias,
    }


def _read_bases(theirs: dict[str, Any], has_windows: bool) -> dict[str, Any]:
    """RoPE of both kinds of layers; without a window there is but one kind."""
    new = theirs.get("rope_parameters") or {}
    if "full_attention" in new:
        said, local = {"rope_parameters": new["full_attention"]}, new.get("sliding_attention") or {}
    else:
        base, scaling = theirs.get("rope_theta") or 1e6, theirs.get("rope_scaling")
        said, local = {"rope_theta": base, "rope_scaling": scaling}, {}
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"rope_parameters sliding_attention {local['rope_type']!r}: must be plain")
    base = local.get("rope_theta") or theirs.get("rope_local_base_freq") or 10000.0
    said["max_position_embeddings"] = theirs["max_position_embeddings"]
    return read_rope(said) | {"rope_window_base": float(base) if has_windows else 0.0}


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    values, every = values_of(theirs), theirs.get("sliding_window_pattern", 6)
    pattern = [(layer + 1) % every > 0 for layer in range(values["num_layers"])]
    windows = read_windows(theirs, pattern, 4096)
    rope = _read_bases(theirs, bool(windows))
    return ModelConfig(**(BASE | values | rope), windows=windows)


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    rope, base = write_rope(config), config.rope_window_base or config.rope_base
    return (
        keys_of(config)
        | write_windows(config)
        | rope
        | {
            "rope_local_base_freq": base,
            "rope_parameters": {
                "full_attention": rope["rope_parameters"],
                "sliding_attention": {"rope_type": "default", "rope_theta": base},
            },
        }
    )


FAMILY = Family(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=LLAMA.once,
    layer=LLAMA.layer,
    model_type="gemma3_text",
    aliases={"hidden_act": "hidden_activation"},
    fixed={
        "attn_logit_softcapping": None,
        "hidden_activation": "gelu_pytorch_tanh",
        "use_bidirectional_attention": False,
    },
    presets=PRESETS,
)
