"""BLOOM: ALiBi, a norm behind the embedding. BigScience 2022, arXiv:2211.05100."""

from typing import Any

import torch
from torch import Tensor

from megalite.models.config import ModelConfig
from megalite.models.families.table import Entry, Family, same
from megalite.models.presets.bloom import PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    size = theirs["hidden_size"]
    if theirs.get("n_inner") not in (None, 4 * size):
        raise ValueError(f"n_inner must be 4 hidden_size, {4 * size}, came {theirs['n_inner']!r}")
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=size,
        num_layers=theirs["n_layer"],
        num_heads=theirs["n_head"],
        ffn_size=4 * size,
        norm="layer_norm",
        norm_eps=theirs.get("layer_norm_epsilon", 1e-5),
        embedding_norm=True,
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        attention_bias=True,
        ffn_bias=True,
        position="alibi",
        dropout=theirs.get("hidden_dropout", 0.0),
        attention_dropout=theirs.get("attention_dropout", 0.0),
        init_std=theirs.get("initializer_range", 0.02),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "layer_norm_epsilon": config.norm_eps,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.standard_deviation,
    }


def split_heads(tensor: Tensor, config: ModelConfig) -> list[Tensor]:
    """[N, (q, k, v), H, ...] to q, k and v."""
    heads = tensor.view(config.num_heads, 3, config.head_dim, *tensor.shape[1:])
    return [heads[:, i] for i in range(3)]


def join_heads(tensors: list[Tensor], config: ModelConfig) -> Tensor:
    """The inverse of :func:`split_heads`."""
    shape = config.num_heads, config.head_dim, *tensors[0].shape[1:]
    return torch.stack([t.reshape(shape) for t in tensors], 1).flatten(0, 2)


def _once(_config: ModelConfig) -> list[Entry]:
    pairs = {
        "word_embeddings_layernorm": "decoder.embedding_norm",
        "ln_f": "decoder.norm",
    }
    entries = [same("transformer.word_embeddings.weight", "embedding.weight")]
    return entries + [
        same(f"transformer.{theirs}.{kind}", f"{ours}.{kind}")
        for theirs, ours in pairs.items()
        for kind in ("weight", "bias")
    ]


def _layer(_config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.h.{i}.", "decoder.layers.{i}."
    pairs = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attention.dense": "attention.output",
        "mlp.dense_h_to_4h": "ffn.up",
        "mlp.dense_4h_to_h": "ffn.output",
    }
    entries = []
    for kind in ("weight", "bias"):
        entries += [same(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}") for a, b in pairs.items()]
        names = tuple(f"{ours}attention.{name}.{kind}" for name in ("query", "key", "value"))
        fused = f"{theirs}self_attention.query_key_value.{kind}"
        entries.append(Entry(fused, names, split_heads, join_heads))
    return entries


FAMILY = Family(
    name="bloom",
    architecture="BloomForCausalLM",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    aliases={
        "n_embed": "hidden_size",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    fixed={"apply_residual_connection_post_layernorm": False, "tie_word_embeddings": True},
    presets=PRESETS,
)
