"""LLaMA 1 to 3.3, and models under its name such as Yi; its tables are those of its heirs too.

Touvron et al. 2023, arXiv:2302.13971 and arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783; Young et al. 2024, arXiv:2403.04652.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.rope import read_rope, write_rope
from megalite.models.families.table import Entry, Family, pairs, same
from megalite.models.presets.llama import PRESETS

HEAD_NORMS = {"self_attn.q_norm": "attention.query_norm", "self_attn.k_norm": "attention.key_norm"}
SURROUNDING_NORMS = {  # Gemma's
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_post_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "ffn_post_norm",
}


def shared_values(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of the keys that LLaMA's configs and its heirs' have alike."""
    return read_rope(theirs) | sizes_of(theirs)


def sizes_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Those of them that don't say how heads turn."""
    return {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": theirs["num_attention_heads"],
        "num_kv_heads": theirs.get("num_key_value_heads") or 0,
        "head_size": theirs.get("head_dim") or 0,
        "ffn_size": theirs["intermediate_size"],
        "max_positions": theirs.get("max_position_embeddings", 2048),
        "norm_eps": theirs["rms_norm_eps"],
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "attention_dropout": theirs.get("attention_dropout", 0.0),
        "init_std": theirs.get("initializer_range", 0.02),
    }


def shared_keys(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`shared_values`."""
    return write_rope(config) | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.standard_deviation,
    }


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    has_bias = theirs.get("attention_bias", False)
    return ModelConfig(
        **shared_values(theirs),
        qkv_bias=has_bias,
        attention_bias=has_bias,
        ffn_bias=theirs.get("mlp_bias", False),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.ffn_bias}
    return shared_keys(config) | biases


def once(config: ModelConfig) -> list[Entry]:
    """Entries outside the layers."""
    entries = [
        same("model.embed_tokens.weight", "embedding.weight"),
        same("model.norm.weight", "decoder.norm.weight"),
    ]
    return entries if config.tie_embeddings else [*entries, same("lm_head.weight", "head.weight")]


def layer(config: ModelConfig) -> list[Entry]:
    """Entries of a layer, with the norms and biases that its config has."""
    theirs, ours = "model.layers.{i}.", "decoder.layers.{i}."
    linears = {
        "self_attn.q_proj": ("attention.query", config.qkv_bias),
        "self_attn.k_proj": ("attention.key", config.qkv_bias),
        "self_attn.v_proj": ("attention.value", config.qkv_bias),
        "self_attn.o_proj": ("attention.output", config.attention_bias),
        "mlp.gate_proj": ("ffn.gate", config.ffn_bias),
        "mlp.up_proj": ("ffn.up", config.ffn_bias),
        "mlp.down_proj": ("ffn.output", config.ffn_bias),
    }
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    if config.norm_position == "both":
        norms = SURROUNDING_NORMS
    entries = pairs(theirs, ours, norms | (HEAD_NORMS if config.query_key_norm else {}), "weight")
    for name, (mine, has_bias) in linears.items():
        entries.append(same(f"{theirs}{name}.weight", f"{ours}{mine}.weight"))
        if has_bias:
            entries.append(same(f"{theirs}{name}.bias", f"{ours}{mine}.bias"))
    return entries


FAMILY = Family(
    name="llama",
    architecture="LlamaForCausalLM",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=once,
    layer=layer,
    fixed={"hidden_act": "silu"},
    ignored=("rotary_emb.inv_freq",),
    presets=PRESETS,
)
