"""GPT-2 and GPT-3's architecture. Radford et al. 2019; Brown et al. 2020, arXiv:2005.14165."""

from typing import Any

import torch
from torch import Tensor

from megalite.models.config import ModelConfig
from megalite.models.families.activations import read_activation
from megalite.models.families.table import Entry, Family, same, transposed
from megalite.models.presets.gpt2 import BASE, PRESETS

ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu", "silu": "silu"}


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    size = theirs["n_embd"]
    values: dict[str, Any] = {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": size,
        "num_layers": theirs["n_layer"],
        "num_heads": theirs["n_head"],
        "ffn_size": theirs.get("n_inner") or 4 * size,
        "norm_eps": theirs["layer_norm_epsilon"],
        "activation": read_activation(theirs, "activation_function", "gelu_new"),
        "max_positions": theirs["n_positions"],
        "tie_embeddings": theirs.get("tie_word_embeddings", True),
        "dropout": theirs.get("resid_pdrop", 0.1),
        "attention_dropout": theirs.get("attn_pdrop", 0.1),
        "init_std": theirs.get("initializer_range", 0.02),
    }
    return ModelConfig(**(BASE | values))


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_size,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATIONS[config.activation],
        "tie_word_embeddings": config.tie_embeddings,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.standard_deviation,
    }


def _split_weight(tensor: Tensor, _config: ModelConfig) -> list[Tensor]:
    return list(tensor.t().chunk(3))


def _join_weight(tensors: list[Tensor], _config: ModelConfig) -> Tensor:
    return torch.cat(tensors).t()


def _once(config: ModelConfig) -> list[Entry]:
    entries = [
        same("transformer.wte.weight", "embedding.weight"),
        same("transformer.wpe.weight", "decoder.positions.weight"),
        same("transformer.ln_f.weight", "decoder.norm.weight"),
        same("transformer.ln_f.bias", "decoder.norm.bias"),
    ]
    return entries if config.tie_embeddings else [*entries, same("lm_head.weight", "head.weight")]


def _layer(_config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.h.{i}.", "decoder.layers.{i}."
    names = ("query", "key", "value")
    entries = [
        same(f"{theirs}ln_1.weight", f"{ours}attention_norm.weight"),
        same(f"{theirs}ln_1.bias", f"{ours}attention_norm.bias"),
        same(f"{theirs}ln_2.weight", f"{ours}ffn_norm.weight"),
        same(f"{theirs}ln_2.bias", f"{ours}ffn_norm.bias"),
        Entry(
            f"{theirs}attn.c_attn.weight",
            tuple(f"{ours}attention.{name}.weight" for name in names),
            _split_weight,
            _join_weight,
            is_transposed=True,
        ),
        Entry(
            f"{theirs}attn.c_attn.bias",
            tuple(f"{ours}attention.{name}.bias" for name in names),
            lambda tensor, _: list(tensor.chunk(3)),
            lambda tensors, _: torch.cat(tensors),
        ),
    ]
    for name, mine in (
        ("attn.c_proj", "attention.output"),
        ("mlp.c_fc", "ffn.up"),
        ("mlp.c_proj", "ffn.output"),
    ):
        entries.append(transposed(f"{theirs}{name}.weight", f"{ours}{mine}.weight"))
        entries.append(same(f"{theirs}{name}.bias", f"{ours}{mine}.bias"))
    return entries


FAMILY = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    fixed={
        "add_cross_attention": False,
        "scale_attn_by_inverse_layer_idx": False,
        "scale_attn_weights": True,
    },
    ignored=("attn.bias", "attn.masked_bias"),
    presets=PRESETS,
)
