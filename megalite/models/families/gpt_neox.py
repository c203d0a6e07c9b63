"""GPT-NeoX and Pythia: part of a head turns, attention beside feed-forward with a norm each.

Black et al. 2022, arXiv:2204.06745; Biderman et al. 2023, arXiv:2304.01373.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.activations import read_activation
from megalite.models.families.bloom import join_heads, split_heads
from megalite.models.families.gpt2 import ACTIVATIONS
from megalite.models.families.rope import read_rope, read_turned_share, write_rope
from megalite.models.families.table import Entry, Family, pairs, qkv, same
from megalite.models.presets.gpt_neox import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    size, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    has_bias = theirs.get("attention_bias", True)
    is_parallel = theirs.get("use_parallel_residual", True)
    values: dict[str, Any] = {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": size,
        "num_layers": theirs["num_hidden_layers"],
        "num_heads": heads,
        "ffn_size": theirs["intermediate_size"],
        "max_positions": theirs["max_position_embeddings"],
        "rotary_size": int(size // heads * read_turned_share(theirs, 0.25)),
        "norm_eps": theirs["layer_norm_eps"],
        "parallel_block": "two_norms" if is_parallel else "no",
        "activation": read_activation(theirs, "hidden_act", "gelu"),
        "qkv_bias": has_bias,
        "attention_bias": has_bias,
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "dropout": theirs.get("hidden_dropout", 0.0),
        "attention_dropout": theirs.get("attention_dropout", 0.0),
        "init_std": theirs.get("initializer_range", 0.02),
    }
    return ModelConfig(**(BASE | values | read_rope(theirs)))


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    rope = write_rope(config)
    return rope | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_size,
        "max_position_embeddings": config.max_positions,
        "rotary_pct": config.rotary / config.head_dim,
        "rotary_emb_base": rope["rope_theta"],
        "layer_norm_eps": config.norm_eps,
        "use_parallel_residual": config.parallel_block == "two_norms",
        "hidden_act": ACTIVATIONS[config.activation],
        "attention_bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.standard_deviation,
    }


def _once(config: ModelConfig) -> list[Entry]:
    entries = [
        same("gpt_neox.embed_in.weight", "embedding.weight"),
        *pairs("gpt_neox.", "decoder.", {"final_layer_norm": "norm"}, "weight", "bias"),
    ]
    return entries if config.tie_embeddings else [*entries, same("embed_out.weight", "head.weight")]


def _layer(config: ModelConfig) -> list[Entry]:
    theirs, ours = "gpt_neox.layers.{i}.", "decoder.layers.{i}."
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.output",
    }
    entries = pairs(theirs, ours, names, "weight", "bias")
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        fused = f"{theirs}attention.query_key_value.{kind}"
        entries.append(Entry(fused, qkv(ours, kind), split_heads, join_heads))
        entries += pairs(theirs, ours, {"attention.dense": "attention.output"}, kind)
    return entries


FAMILY = Family(
    name="gpt-neox",
    architecture="GPTNeoXForCausalLM",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    model_type="gpt_neox",
    aliases={"rotary_emb_base": "rope_theta"},
    ignored=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
    presets=PRESETS,
)
