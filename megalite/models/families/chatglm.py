"""ChatGLM-6B: two position axes, DeepNorm. THUDM/ChatGLM-6B; Wang et al. 2022, arXiv:2203.00555.

Its blocks read n = norm(x) and give alpha n + f(n), twice. Taken one norm later that is
norm(alpha x + f(x)), post-norm, with the first norm behind the embedding and the last in place of a
final one; so the names of the norms move on by one.
"""

import math
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.bloom import join_heads, split_heads
from megalite.models.families.table import Entry, Family, pairs, qkv, same
from megalite.models.presets.chatglm import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    layers = theirs["num_layers"]
    values: dict[str, Any] = {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "num_layers": layers,
        "num_heads": theirs["num_attention_heads"],
        "ffn_size": theirs["inner_hidden_size"],
        "max_positions": theirs["max_sequence_length"],
        "norm_eps": theirs["layernorm_epsilon"],
        "residual_scale": math.sqrt(2 * layers),
        "rope_axes": 2 if theirs.get("position_encoding_2d", True) else 1,
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
    }
    return ModelConfig(**(BASE | values))


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "inner_hidden_size": config.ffn_size,
        "max_sequence_length": config.max_positions,
        "layernorm_epsilon": config.norm_eps,
        "position_encoding_2d": config.rope_axes == 2,
        "tie_word_embeddings": config.tie_embeddings,
    }


def shifted_norms(config: ModelConfig) -> list[Entry]:
    """The norms of a model whose residual begins behind a block's first norm."""
    first = [f"layers.{i}.input_layernorm" for i in range(config.num_layers)]
    own = ["embedding_norm", *(f"layers.{i}.ffn_norm" for i in range(config.num_layers))]
    names = dict(zip([*first, "final_layernorm"], own, strict=True))
    return pairs("transformer.", "decoder.", names, "weight", "bias")


def _once(config: ModelConfig) -> list[Entry]:
    entries = [same("transformer.word_embeddings.weight", "embedding.weight")]
    entries += shifted_norms(config)
    return entries if config.tie_embeddings else [*entries, same("lm_head.weight", "head.weight")]


def _layer(_config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.layers.{i}.", "decoder.layers.{i}."
    names = {
        "post_attention_layernorm": "attention_norm",
        "attention.dense": "attention.output",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.output",
    }
    entries = pairs(theirs, ours, names, "weight", "bias")
    for kind in ("weight", "bias"):
        name = f"{theirs}attention.query_key_value.{kind}"
        entries.append(Entry(name, qkv(ours, kind), split_heads, join_heads))
    return entries


FAMILY = Family(
    name="chatglm",
    architecture="ChatGLMModel",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    marker="inner_hidden_size",
    ignored=("rotary_emb.inv_freq",),
    presets=PRESETS,
)
