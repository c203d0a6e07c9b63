"""BART. Lewis et al. 2019, arXiv:1910.13461."""

import math
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.table import Entry, Family, same
from megalite.models.presets.bart import PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    for name in ("attention_heads", "ffn_dim"):
        if theirs[f"encoder_{name}"] != theirs[f"decoder_{name}"]:
            raise ValueError(f"encoder_{name} and decoder_{name} must be equal")
    size = theirs["d_model"]
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=size,
        num_encoder_layers=theirs["encoder_layers"],
        num_layers=theirs["decoder_layers"],
        num_heads=theirs["encoder_attention_heads"],
        ffn_size=theirs["encoder_ffn_dim"],
        norm="layer_norm",
        norm_position="post",
        embedding_norm=True,
        final_norm=False,
        activation=theirs.get("activation_function", "gelu"),
        gated=False,
        qkv_bias=True,
        attention_bias=True,
        ffn_bias=True,
        position="learned",
        max_positions=theirs["max_position_embeddings"],
        position_offset=2,
        embedding_scale=math.sqrt(size) if theirs.get("scale_embedding") else 1.0,
        dropout=theirs.get("dropout", 0.1),
        attention_dropout=theirs.get("attention_dropout", 0.0),
        init_std=theirs.get("init_std", 0.02),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    stacks = {"encoder": config.num_encoder_layers, "decoder": config.num_layers}
    sizes = {}
    for stack, layers in stacks.items():
        sizes[f"{stack}_layers"] = layers
        sizes[f"{stack}_attention_heads"] = config.num_heads
        sizes[f"{stack}_ffn_dim"] = config.ffn_size
    return sizes | {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "activation_function": config.activation,
        "max_position_embeddings": config.max_positions,
        "scale_embedding": config.embedding_scale != 1.0,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_std": config.init_std,
        "is_encoder_decoder": True,
    }


def _once(_config: ModelConfig) -> list[Entry]:
    entries = [same("model.shared.weight", "embedding.weight")]
    for stack in ("encoder", "decoder"):
        theirs = f"model.{stack}."
        entries.append(same(f"{theirs}embed_positions.weight", f"{stack}.positions.weight"))
        entries += [
            same(f"{theirs}layernorm_embedding.{kind}", f"{stack}.embedding_norm.{kind}")
            for kind in ("weight", "bias")
        ]
    return entries


def _block(stack: str) -> list[Entry]:
    theirs, ours = f"model.{stack}.layers.{{i}}.", f"{stack}.layers.{{i}}."
    linears = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}
    pairs = {"fc1": "ffn.up", "fc2": "ffn.output", "final_layer_norm": "ffn_norm"}
    attentions = {"self_attn": "attention"} | (
        {"encoder_attn": "cross"} if stack == "decoder" else {}
    )
    for a, b in attentions.items():
        pairs[f"{a}_layer_norm"] = f"{b}_norm"
        pairs |= {f"{a}.{c}": f"{b}.{d}" for c, d in linears.items()}
    return [
        same(f"{theirs}{a}.{kind}", f"{ours}{b}.{kind}")
        for a, b in pairs.items()
        for kind in ("weight", "bias")
    ]


FAMILY = Family(
    name="bart",
    architecture="BartForConditionalGeneration",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=lambda _: _block("decoder"),
    encoder_layer=lambda _: _block("encoder"),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    },
    zero=("final_logits_bias",),
    fixed={
        "add_final_layer_norm": False,
        "normalize_before": False,
        "normalize_embedding": True,
        "tie_word_embeddings": True,
    },
    presets=PRESETS,
)
