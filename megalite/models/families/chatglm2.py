"""ChatGLM2-6B, and ChatGLM3-6B which is built alike: half of a head turns, groups of heads.

Source: Du et al. 2021, arXiv:2103.10360; THUDM/ChatGLM2-6B and the code beside its weights.
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
from megalite.models.presets.chatglm2 import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    heads, width = theirs["num_attention_heads"], theirs["kv_channels"]
    is_grouped = theirs.get("multi_query_attention", False)
    has_bias = theirs.get("add_bias_linear", False)
    values: dict[str, Any] = {
        "vocab_size": theirs["padded_vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "num_layers": theirs["num_layers"],
        "num_heads": heads,
        "num_kv_heads": theirs["multi_query_group_num"] if is_grouped else heads,
        "head_size": width,
        "ffn_size": theirs["ffn_hidden_size"],
        "max_positions": theirs["seq_length"],
        "norm": "rms_norm" if theirs.get("rmsnorm", True) else "layer_norm",
        "norm_eps": theirs["layernorm_epsilon"],
        "final_norm": theirs.get("post_layer_norm", True),
        "rotary_size": width // 2,
        "qkv_bias": has_bias or theirs.get("add_qkv_bias", False),
        "attention_bias": has_bias,
        "ffn_bias": has_bias,
        "rope_base": 10000.0 * (theirs.get("rope_ratio") or 1),
        "tie_embeddings": theirs.get("tie_word_embeddings", False),
        "dropout": theirs.get("hidden_dropout", 0.0),
        "attention_dropout": theirs.get("attention_dropout", 0.0),
    }
    return ModelConfig(**(BASE | values))


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "padded_vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "multi_query_attention": True,
        "multi_query_group_num": config.kv_heads,
        "kv_channels": config.head_dim,
        "ffn_hidden_size": config.ffn_size,
        "seq_length": config.max_positions,
        "rmsnorm": config.norm == "rms_norm",
        "layernorm_epsilon": config.norm_eps,
        "post_layer_norm": config.final_norm,
        "add_bias_linear": config.ffn_bias,
        "add_qkv_bias": config.qkv_bias,
        "rope_ratio": config.rope_base / 10000.0,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
    }


def _norm_kinds(config: ModelConfig) -> tuple[str, ...]:
    return ("weight",) if config.norm == "rms_norm" else ("weight", "bias")


def _once(config: ModelConfig) -> list[Entry]:
    theirs = "transformer."
    entries = [same(f"{theirs}embedding.word_embeddings.weight", "embedding.weight")]
    if config.final_norm:
        final = {"encoder.final_layernorm": "decoder.norm"}
        entries += pairs(theirs, "", final, *_norm_kinds(config))
    if not config.tie_embeddings:
        entries.append(same(f"{theirs}output_layer.weight", "head.weight"))
    return entries


def _layer(config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.encoder.layers.{i}.", "decoder.layers.{i}."
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm"}
    outputs = {"self_attention.dense": "attention.output", "mlp.dense_4h_to_h": "ffn.output"}
    entries = pairs(theirs, ours, norms, *_norm_kinds(config))
    for kind, has_qkv, has_rest in (
        ("weight", True, True),
        ("bias", config.qkv_bias, config.ffn_bias),
    ):
        name = f"{theirs}self_attention.query_key_value.{kind}"
        entries += [stacked(name, *qkv(ours, kind), sizes=qkv_rows)] if has_qkv else []
        if has_rest:
            entries += pairs(theirs, ours, outputs, kind)
            inner = f"{ours}ffn.gate.{kind}", f"{ours}ffn.up.{kind}"
            name = f"{theirs}mlp.dense_h_to_4h.{kind}"
            entries.append(stacked(name, *inner, sizes=lambda config: [config.ffn_size] * 2))
    return entries


FAMILY = Family(
    name="chatglm2",
    architecture="ChatGLMModel",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    model_type="chatglm",
    marker="ffn_hidden_size",
    aliases={"vocab_size": "padded_vocab_size"},
    fixed={"apply_residual_connection_post_layernorm": False, "interleaved_qkv": False},
    ignored=("rotary_pos_emb.inv_freq",),
    presets=PRESETS,
)
