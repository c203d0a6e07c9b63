"""InternLM2: LLaMA's blocks, query, key and value in one matrix by groups of heads.

Source: Cai et al. 2024, arXiv:2403.17297, and the code beside the published weights.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.falcon import join_groups, split_groups
from megalite.models.families.llama import shared_keys, shared_values
from megalite.models.families.table import Entry, Family, pairs, qkv, same
from megalite.models.presets.internlm2 import PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    has_bias = theirs.get("bias", False)
    return ModelConfig(**shared_values(theirs), qkv_bias=has_bias, attention_bias=has_bias)


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    # Heads are hidden_size / num_attention_heads wide.
    keys = {key: value for key, value in shared_keys(config).items() if key != "head_dim"}
    return keys | {"bias": config.qkv_bias}


def _once(config: ModelConfig) -> list[Entry]:
    entries = [
        same("model.tok_embeddings.weight", "embedding.weight"),
        same("model.norm.weight", "decoder.norm.weight"),
    ]
    return entries if config.tie_embeddings else [*entries, same("output.weight", "head.weight")]


def _layer(config: ModelConfig) -> list[Entry]:
    theirs, ours = "model.layers.{i}.", "decoder.layers.{i}."
    names = {
        "attention_norm": "attention_norm",
        "ffn_norm": "ffn_norm",
        "attention.wo": "attention.output",
        "feed_forward.w1": "ffn.gate",
        "feed_forward.w3": "ffn.up",
        "feed_forward.w2": "ffn.output",
    }
    entries = pairs(theirs, ours, names, "weight")
    for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
        fused = f"{theirs}attention.wqkv.{kind}"
        entries.append(Entry(fused, qkv(ours, kind), split_groups, join_groups))
    if config.attention_bias:
        entries.append(same(f"{theirs}attention.wo.bias", f"{ours}attention.output.bias"))
    return entries


FAMILY = Family(
    name="internlm2",
    architecture="InternLM2ForCausalLM",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    fixed={"hidden_act": "silu"},
    ignored=("rotary_emb.inv_freq",),
    presets=PRESETS,
)
