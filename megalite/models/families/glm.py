"""GLM-4, the heir of ChatGLM: half of a head turns, gate and up are one matrix.

GLM team 2024, arXiv:2406.12793. The code beside the first weights has ChatGLM2's names; these are
those of transformers.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.llama import once, shared_keys, shared_values
from megalite.models.families.rope import read_turned_share
from megalite.models.families.table import Entry, Family, pairs, stacked
from megalite.models.presets.glm import BASE, PRESETS

NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}


def values_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of a config's keys."""
    values = shared_values(theirs)
    width = theirs.get("head_dim") or values["hidden_size"] // values["num_heads"]
    turned = int(width * read_turned_share(theirs, 0.5))
    has_bias = theirs.get("attention_bias", True)
    return BASE | values | {"rotary_size": turned, "qkv_bias": has_bias}


def keys_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`values_of`."""
    share = config.rotary / config.head_dim
    return shared_keys(config) | {
        "attention_bias": config.qkv_bias,
        "partial_rotary_factor": share,
    }


def layer_of(config: ModelConfig, norms: dict[str, str]) -> list[Entry]:
    """Entries of a layer with these norms, their names and ours."""
    theirs, ours = "model.layers.{i}.", "decoder.layers.{i}."
    linears = {"q": "query", "k": "key", "v": "value"}
    linears = {f"self_attn.{a}_proj": f"attention.{b}" for a, b in linears.items()}
    outputs = {"self_attn.o_proj": "attention.output", "mlp.down_proj": "ffn.output"}
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    inner = f"{ours}ffn.gate.weight", f"{ours}ffn.up.weight"
    fused = f"{theirs}mlp.gate_up_proj.weight"
    return [
        *pairs(theirs, ours, norms | outputs, "weight"),
        *pairs(theirs, ours, linears, *kinds),
        stacked(fused, *inner, sizes=lambda config: [config.ffn_size] * 2),
    ]


FAMILY = Family(
    name="glm",
    architecture="GlmForCausalLM",
    is_scored=True,
    from_theirs=lambda theirs: ModelConfig(**values_of(theirs)),
    to_theirs=keys_of,
    once=once,
    layer=lambda config: layer_of(config, NORMS),
    fixed={"hidden_act": "silu"},
    presets=PRESETS,
)
