"""Falcon: attention and feed-forward side by side. Almazrouei et al. 2023, arXiv:2311.16867.

7B has one norm and one key head; 40B and 180B ("new decoder architecture") have two norms and
groups of heads; falcon-rw has blocks one after the other and ALiBi, whose bias is scaled as scores
are. Files of 2023 have the model types RefinedWebModel (7B, rw) and RefinedWeb (40B).
"""

from typing import Any, Literal

import torch
from torch import Tensor

from megalite.models.config import ModelConfig
from megalite.models.families.rope import read_rope, write_rope
from megalite.models.families.table import Entry, Family, same
from megalite.models.presets.falcon import PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    is_new = theirs.get("new_decoder_architecture", theirs.get("model_type") == "RefinedWeb")
    size, heads = theirs["hidden_size"], theirs["num_attention_heads"]
    is_parallel, is_multi_query = theirs.get("parallel_attn", True), theirs.get("multi_query", True)
    norms = theirs.get("num_ln_in_parallel_attn") or (2 if is_new else 1)
    block: Literal["no", "one_norm", "two_norms"] = "no"
    if is_new or is_parallel:
        block = "two_norms" if norms == 2 else "one_norm"
    groups = theirs.get("num_kv_heads") or heads
    if not is_new:  # only the new blocks have groups
        groups = 1 if is_multi_query else heads
    rope = read_rope(theirs)
    has_bias, has_alibi = theirs.get("bias", False), theirs.get("alibi", False)
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=size,
        num_layers=theirs["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=groups,
        ffn_size=theirs.get("ffn_hidden_size") or 4 * size,
        max_positions=theirs.get("max_position_embeddings", 2048),
        norm="layer_norm",
        norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        parallel_block=block,
        activation="gelu",
        gated=False,
        qkv_bias=has_bias,
        attention_bias=has_bias,
        ffn_bias=has_bias,
        position="alibi" if has_alibi else "rope",
        alibi_scale=(size // heads) ** -0.5 if has_alibi else 1.0,
        **({} if has_alibi else rope),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        dropout=theirs.get("hidden_dropout", 0.0),
        attention_dropout=theirs.get("attention_dropout", 0.0),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    is_parallel = config.parallel_block != "no"
    is_new = config.parallel_block == "two_norms" or (is_parallel and config.kv_heads > 1)
    rope = write_rope(config) if config.position == "rope" else {}
    return rope | {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_kv_heads": config.kv_heads,
        "ffn_hidden_size": config.ffn_size,
        "max_position_embeddings": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "new_decoder_architecture": is_new,
        "num_ln_in_parallel_attn": 2 if config.parallel_block == "two_norms" else 1,
        "multi_query": config.kv_heads == 1,
        "parallel_attn": is_parallel,
        "alibi": config.position == "alibi",
        "bias": config.qkv_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.standard_deviation,
    }


def split_groups(tensor: Tensor, config: ModelConfig) -> list[Tensor]:
    """[G, N / G query heads and a key and a value head, H, ...] to q, k and v."""
    ratio = config.num_heads // config.kv_heads
    shape = config.kv_heads, ratio + 2, config.head_dim, *tensor.shape[1:]
    groups = tensor.view(shape)
    return [groups[:, :ratio], groups[:, ratio], groups[:, ratio + 1]]


def join_groups(tensors: list[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of :func:`split_groups`."""
    rest = config.head_dim, *tensors[0].shape[1:]
    parts = [tensor.reshape(config.kv_heads, -1, *rest) for tensor in tensors]
    return torch.cat(parts, 1).flatten(0, 2)


def _once(config: ModelConfig) -> list[Entry]:
    entries = [
        same("transformer.word_embeddings.weight", "embedding.weight"),
        same("transformer.ln_f.weight", "decoder.norm.weight"),
        same("transformer.ln_f.bias", "decoder.norm.bias"),
    ]
    return entries if config.tie_embeddings else [*entries, same("lm_head.weight", "head.weight")]


def _layer(config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.h.{i}.", "decoder.layers.{i}."
    norms = {"input_layernorm": "attention_norm"}
    if config.parallel_block == "two_norms":
        norms = {"ln_attn": "attention_norm", "ln_mlp": "ffn_norm"}
    if config.parallel_block == "no":
        norms["post_attention_layernorm"] = "ffn_norm"
    linears = {
        "self_attention.dense": "attention.output",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.output",
    }
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    entries = [
        same(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}")
        for a, b in norms.items()
        for kind in ("weight", "bias")
    ]
    for kind in kinds:
        entries += [same(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}") for a, b in linears.items()]
        names = tuple(f"{ours}attention.{name}.{kind}" for name in ("query", "key", "value"))
        fused = f"{theirs}self_attention.query_key_value.{kind}"
        entries.append(Entry(fused, names, split_groups, join_groups))
    return entries


FAMILY = Family(
    name="falcon",
    architecture="FalconForCausalLM",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    also=("RefinedWebModel", "RefinedWeb"),
    aliases={"n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
    | {"n_head_kv": "num_kv_heads", "n_embed": "hidden_size"},
    fixed={"activation": "gelu", "apply_residual_connection_post_layernorm": False},
    presets=PRESETS,
)
