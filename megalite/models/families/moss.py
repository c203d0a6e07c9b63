"""MOSS, and CodeGen on which it is built: part of a head turns, attention beside feed-forward.

Source: Sun et al. 2023, OpenMOSS/MOSS; Nijkamp et al. 2022, arXiv:2203.13474. Their query, key and
value are one matrix of four parts, since they were trained on four TPU cores, each with its heads'
queries, then values, then keys.
"""

from typing import Any

import torch
from torch import Tensor

from megalite.models.config import ModelConfig
from megalite.models.families.activations import read_activation
from megalite.models.families.gpt2 import ACTIVATIONS
from megalite.models.families.table import Entry, Family, pairs, qkv, same
from megalite.models.presets.moss import BASE, PRESETS

CORES = 4


def shared_values(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of the keys of a config; GPT-J's has the same."""
    size = theirs["n_embd"]
    return {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": size,
        "num_layers": theirs["n_layer"],
        "num_heads": theirs["n_head"],
        "ffn_size": theirs.get("n_inner") or 4 * size,
        "max_positions": theirs["n_positions"],
        "rotary_size": theirs["rotary_dim"],
        "norm_eps": theirs["layer_norm_epsilon"],
        "activation": read_activation(theirs, "activation_function", "gelu_new"),
        "dropout": theirs.get("resid_pdrop", 0.0),
        "attention_dropout": theirs.get("attn_pdrop", 0.0),
        "init_std": theirs.get("initializer_range", 0.02),
    }


def shared_keys(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`shared_values`."""
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.ffn_size,
        "n_positions": config.max_positions,
        "rotary_dim": config.rotary,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "initializer_range": config.standard_deviation,
    }


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    if theirs["n_head"] % CORES:
        raise ValueError(f"n_head must be a multiple of {CORES}, came {theirs['n_head']}")
    return ModelConfig(**(BASE | shared_values(theirs)))


def _split(tensor: Tensor, _config: ModelConfig) -> list[Tensor]:
    parts = tensor.view(CORES, 3, -1, *tensor.shape[1:])
    return [parts[:, i].flatten(0, 1) for i in (0, 2, 1)]


def _join(tensors: list[Tensor], _config: ModelConfig) -> Tensor:
    query, key, value = (tensor.unflatten(0, (CORES, -1)) for tensor in tensors)
    return torch.stack((query, value, key), 1).flatten(0, 2)


def _once(_config: ModelConfig) -> list[Entry]:
    return [
        same("transformer.wte.weight", "embedding.weight"),
        *pairs("transformer.", "decoder.", {"ln_f": "norm"}, "weight", "bias"),
        *pairs("", "", {"lm_head": "head"}, "weight", "bias"),
    ]


def _layer(_config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.h.{i}.", "decoder.layers.{i}."
    names = {"ln_1": "attention_norm", "mlp.fc_in": "ffn.up", "mlp.fc_out": "ffn.output"}
    return [
        *pairs(theirs, ours, names, "weight", "bias"),
        Entry(f"{theirs}attn.qkv_proj.weight", qkv(ours, "weight"), _split, _join),
        same(f"{theirs}attn.out_proj.weight", f"{ours}attention.output.weight"),
    ]


FAMILY = Family(
    name="moss",
    architecture="MossForCausalLM",
    from_theirs=_from_theirs,
    to_theirs=shared_keys,
    once=_once,
    layer=_layer,
    also=("codegen",),
    aliases={
        "hidden_size": "n_embd",
        "max_position_embeddings": "n_positions",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
    },
    fixed={"scale_attn_weights": True, "tie_word_embeddings": False},
    ignored=("attn.causal_mask", "attn.masked_bias", "attn.bias"),
    presets=PRESETS,
)
