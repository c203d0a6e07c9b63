"""Baichuan 7B (RoPE) and 13B (ALiBi), and Baichuan 2, whose head has rows of length 1.

Source: Yang et al. 2023, arXiv:2309.10305; the modelling code beside the published weights. The two
generations share a model type; the second's vocabulary and its key z_loss_weight tell it apart.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.table import (
    Entry,
    Family,
    pairs,
    qkv,
    qkv_rows,
    same,
    stacked,
)
from megalite.models.presets.baichuan import PRESETS, SECOND


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    longest = theirs.get("max_position_embeddings")
    is_second = "z_loss_weight" in theirs or theirs["vocab_size"] >= SECOND
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=theirs["hidden_size"],
        num_layers=theirs["num_hidden_layers"],
        num_heads=theirs["num_attention_heads"],
        ffn_size=theirs["intermediate_size"],
        position="rope" if longest else "alibi",
        max_positions=longest or theirs["model_max_length"],
        norm_eps=theirs["rms_norm_eps"],
        normalised_head=is_second,
        tie_embeddings=False,
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    has_rope = config.position == "rope"
    longest = "max_position_embeddings" if has_rope else "model_max_length"
    return ({"z_loss_weight": 0} if config.normalised_head else {}) | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.ffn_size,
        longest: config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "initializer_range": config.standard_deviation,
    }


def _once(_config: ModelConfig) -> list[Entry]:
    return [
        same("model.embed_tokens.weight", "embedding.weight"),
        same("model.norm.weight", "decoder.norm.weight"),
        same("lm_head.weight", "head.weight"),
    ]


def _layer(_config: ModelConfig) -> list[Entry]:
    theirs, ours = "model.layers.{i}.", "decoder.layers.{i}."
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.o_proj": "attention.output",
        "mlp.gate_proj": "ffn.gate",
        "mlp.up_proj": "ffn.up",
        "mlp.down_proj": "ffn.output",
    }
    packed = stacked(f"{theirs}self_attn.W_pack.weight", *qkv(ours, "weight"), sizes=qkv_rows)
    return [packed, *pairs(theirs, ours, names, "weight")]


FAMILY = Family(
    name="baichuan",
    architecture="BaichuanForCausalLM",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    fixed={"hidden_act": "silu", "tie_word_embeddings": False},
    ignored=("rotary_emb.inv_freq",),
    presets=PRESETS,
)
