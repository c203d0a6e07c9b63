"""BART. Lewis et al. 2019, arXiv:1910.13461."""

import math
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.activations import read_activation
from megalite.models.families.gpt2 import ACTIVATIONS
from megalite.models.families.table import Entry, Family, pairs, same
from megalite.models.presets.bart import BASE, PRESETS


def values_of(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of a config's keys, without the place of norms; mBART and Pegasus have the same.

    Raises:
        ValueError: encoder and decoder differ where ours can't.
    """
    for name in ("attention_heads", "ffn_dim"):
        if theirs[f"encoder_{name}"] != theirs[f"decoder_{name}"]:
            raise ValueError(f"encoder_{name} and decoder_{name} must be equal")
    size = theirs["d_model"]
    return {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": size,
        "num_encoder_layers": theirs["encoder_layers"],
        "num_layers": theirs["decoder_layers"],
        "num_heads": theirs["encoder_attention_heads"],
        "ffn_size": theirs["encoder_ffn_dim"],
        "activation": read_activation(theirs, "activation_function", "gelu"),
        "max_positions": theirs["max_position_embeddings"],
        "embedding_scale": math.sqrt(size) if theirs.get("scale_embedding") else 1.0,
        "dropout": theirs.get("dropout", 0.1),
        "attention_dropout": theirs.get("attention_dropout", 0.0),
        "init_std": theirs.get("init_std", 0.02),
    }


def keys_of(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`values_of`."""
    stacks = {"encoder": config.num_encoder_layers, "decoder": config.num_layers}
    sizes = {}
    for stack, layers in stacks.items():
        sizes[f"{stack}_layers"] = layers
        sizes[f"{stack}_attention_heads"] = config.num_heads
        sizes[f"{stack}_ffn_dim"] = config.ffn_size
    return sizes | {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "activation_function": ACTIVATIONS[config.activation],
        "max_position_embeddings": config.max_positions,
        "scale_embedding": config.embedding_scale != 1.0,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_std": config.standard_deviation,
        "is_encoder_decoder": True,
    }


def once(config: ModelConfig) -> list[Entry]:
    """Entries outside the layers."""
    entries = [same("model.shared.weight", "embedding.weight")]
    for stack in ("encoder", "decoder"):
        theirs = f"model.{stack}."
        if config.position == "learned":
            entries.append(same(f"{theirs}embed_positions.weight", f"{stack}.positions.weight"))
        norms = {"layernorm_embedding": "embedding_norm"} if config.embedding_norm else {}
        if config.final_norm:
            norms["layer_norm"] = "norm"
        entries += pairs(theirs, f"{stack}.", norms, "weight", "bias")
    return entries


def block(stack: str) -> list[Entry]:
    """Entries of a layer of the encoder or the decoder."""
    theirs, ours = f"model.{stack}.layers.{{i}}.", f"{stack}.layers.{{i}}."
    linears = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    names = {"fc1": "ffn.up", "fc2": "ffn.output", "final_layer_norm": "ffn_norm"}
    attentions = {"self_attn": "attention"} | (
        {"encoder_attn": "cross"} if stack == "decoder" else {}
    )
    for a, b in attentions.items():
        names[f"{a}_layer_norm"] = f"{b}_norm"
        names |= {f"{a}.{c}": f"{b}.{d}" for c, d in linears.items()}
    return pairs(theirs, ours, names, "weight", "bias")


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**(BASE | values_of(theirs)))


VERSIONS = ("encoder.version", "decoder.version")  # fairseq's, in the first files

FAMILY = Family(
    name="bart",
    architecture="BartForConditionalGeneration",
    from_theirs=_from_theirs,
    to_theirs=keys_of,
    once=once,
    layer=lambda _: block("decoder"),
    encoder_layer=lambda _: block("encoder"),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
    ignored=VERSIONS,
    zero=("final_logits_bias",),
    fixed={
        "add_final_layer_norm": False,
        "normalize_before": False,
        "normalize_embedding": True,
        "tie_word_embeddings": True,
    },
    presets=PRESETS,
)
