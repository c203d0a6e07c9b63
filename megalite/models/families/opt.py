"""OPT, its 350M variant (post-norm, narrow embedding) too. Zhang et al. 2022, arXiv:2205.01068."""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.activations import read_activation
from megalite.models.families.gpt2 import ACTIVATIONS
from megalite.models.families.table import Entry, Family, same
from megalite.models.presets.opt import PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    is_pre = theirs.get("do_layer_norm_before", True)
    has_bias = theirs.get("enable_bias", True)
    width = theirs.get("word_embed_proj_dim") or theirs["hidden_size"]
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=theirs["hidden_size"],
        num_layers=theirs["num_hidden_layers"],
        num_heads=theirs["num_attention_heads"],
        ffn_size=theirs["ffn_dim"],
        embedding_size=0 if width == theirs["hidden_size"] else width,
        norm="layer_norm",
        norm_position="pre" if is_pre else "post",
        final_norm=is_pre and not theirs.get("_remove_final_layer_norm", False),
        activation=read_activation(theirs, "activation_function", "relu"),
        gated=False,
        qkv_bias=has_bias,
        attention_bias=has_bias,
        ffn_bias=has_bias,
        position="learned",
        max_positions=theirs["max_position_embeddings"],
        position_offset=2,
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        dropout=theirs.get("dropout", 0.1),
        attention_dropout=theirs.get("attention_dropout", 0.0),
        init_std=theirs.get("init_std", 0.02),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    is_pre = config.norm_position == "pre"
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "ffn_dim": config.ffn_size,
        "word_embed_proj_dim": config.embedding_width,
        "do_layer_norm_before": is_pre,
        "_remove_final_layer_norm": is_pre and not config.final_norm,
        "activation_function": ACTIVATIONS[config.activation],
        "enable_bias": config.qkv_bias,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_std": config.standard_deviation,
    }


def _once(config: ModelConfig) -> list[Entry]:
    theirs = "model.decoder."
    entries = [
        same(f"{theirs}embed_tokens.weight", "embedding.weight"),
        same(f"{theirs}embed_positions.weight", "decoder.positions.weight"),
    ]
    if config.embedding_width != config.hidden_size:
        entries.append(same(f"{theirs}project_in.weight", "decoder.project.weight"))
        entries.append(same(f"{theirs}project_out.weight", "head.project.weight"))
    if config.final_norm:
        entries += [
            same(f"{theirs}final_layer_norm.{kind}", f"decoder.norm.{kind}")
            for kind in ("weight", "bias")
        ]
    return entries if config.tie_embeddings else [*entries, same("lm_head.weight", "head.weight")]


def _layer(config: ModelConfig) -> list[Entry]:
    theirs, ours = "model.decoder.layers.{i}.", "decoder.layers.{i}."
    pairs = {
        "self_attn_layer_norm": ("attention_norm", True),
        "final_layer_norm": ("ffn_norm", True),
        "self_attn.q_proj": ("attention.query", config.qkv_bias),
        "self_attn.k_proj": ("attention.key", config.qkv_bias),
        "self_attn.v_proj": ("attention.value", config.qkv_bias),
        "self_attn.out_proj": ("attention.output", config.attention_bias),
        "fc1": ("ffn.up", config.ffn_bias),
        "fc2": ("ffn.output", config.ffn_bias),
    }
    return [
        same(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}")
        for a, (b, has_bias) in pairs.items()
        for kind in (("weight", "bias") if has_bias else ("weight",))
    ]


FAMILY = Family(
    name="opt",
    architecture="OPTForCausalLM",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    fixed={"layer_norm_elementwise_affine": True},
    presets=PRESETS,
)
