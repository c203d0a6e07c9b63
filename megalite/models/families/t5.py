"""T5: 1.0 (ReLU, tied), 1.1, Flan-T5 and mT5 (gated GELU, untied), UL2 (gated SiLU, untied).

Raffel et al. 2019, arXiv:1910.10683; Chung et al. 2022, arXiv:2210.11416; Xue et al. 2020,
arXiv:2010.11934; Tay et al. 2022, arXiv:2205.05131.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.table import Entry, Family, same, transposed
from megalite.models.presets.t5 import PRESETS

ACTIVATIONS: dict[str, tuple[Any, bool]] = {  # their name: ours, and whether it is gated
    "relu": ("relu", False),
    "gelu": ("gelu", False),
    "gated-gelu": ("gelu_tanh", True),
    "gated-silu": ("silu", True),
}


def _is_scaled(theirs: dict[str, Any]) -> bool:
    """Whether what a config doesn't say is scaled before the head.

    It is where the head is tied, but for mT5 in transformers 5, which never scales.
    """
    first, _, _ = str(theirs.get("transformers_version")).partition(".")
    is_never = theirs.get("model_type") == "mt5" and first.isdecimal() and int(first) >= 5
    return theirs.get("tie_word_embeddings", True) and not is_never


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    default = "gated-gelu" if theirs.get("model_type") == "mt5" else "relu"
    kind = theirs.get("feed_forward_proj", default)
    if kind not in ACTIVATIONS:
        raise ValueError(f"feed_forward_proj {kind!r}; {', '.join(ACTIVATIONS)} are known")
    activation, gated = ACTIVATIONS[kind]
    size = theirs["d_model"]
    return ModelConfig(
        vocab_size=theirs["vocab_size"],
        hidden_size=size,
        num_encoder_layers=theirs["num_layers"],
        num_layers=theirs.get("num_decoder_layers") or theirs["num_layers"],
        num_heads=theirs["num_heads"],
        head_size=theirs["d_kv"],
        ffn_size=theirs["d_ff"],
        norm_eps=theirs.get("layer_norm_epsilon", 1e-6),
        activation=activation,
        gated=gated,
        attention_scale=1.0,
        position="relative",
        relative_buckets=theirs.get("relative_attention_num_buckets", 32),
        relative_max_distance=theirs.get("relative_attention_max_distance", 128),
        tie_embeddings=theirs.get("tie_word_embeddings", True),
        logit_scale=size**-0.5 if theirs.get("scale_decoder_outputs", _is_scaled(theirs)) else 1.0,
        dropout=theirs.get("dropout_rate", 0.1),
        attention_dropout=theirs.get("dropout_rate", 0.1),
    )


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    kinds = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    # Its cache in transformers 4.57 and 5 has as many layers as the encoder.
    slow = {"use_cache": False} if config.num_layers > config.num_encoder_layers else {}
    return slow | {
        "vocab_size": config.vocab_size,
        "d_model": config.hidden_size,
        "d_kv": config.head_dim,
        "d_ff": config.ffn_size,
        "num_layers": config.num_encoder_layers,
        "num_decoder_layers": config.num_layers,
        "num_heads": config.num_heads,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": kinds[config.activation, config.gated],
        "relative_attention_num_buckets": config.relative_buckets,
        "relative_attention_max_distance": config.relative_max_distance,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_decoder_outputs": config.logit_scale != 1.0,
        "dropout_rate": config.dropout,
        "is_encoder_decoder": True,
        "decoder_start_token_id": 0,
    }


def _once(config: ModelConfig) -> list[Entry]:
    entries = [same("shared.weight", "embedding.weight")]
    for stack in ("encoder", "decoder"):
        bias = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        entries.append(transposed(bias, f"{stack}.relative.weight"))
        entries.append(same(f"{stack}.final_layer_norm.weight", f"{stack}.norm.weight"))
    return entries if config.tie_embeddings else [*entries, same("lm_head.weight", "head.weight")]


def _attention(theirs: str, ours: str) -> list[Entry]:
    names = {"q": "query", "k": "key", "v": "value", "o": "output"}
    return [same(f"{theirs}.{a}.weight", f"{ours}.{b}.weight") for a, b in names.items()]


def _block(config: ModelConfig, stack: str) -> list[Entry]:
    theirs, ours = f"{stack}.block.{{i}}.layer", f"{stack}.layers.{{i}}"
    entries = _attention(f"{theirs}.0.SelfAttention", f"{ours}.attention")
    entries.append(same(f"{theirs}.0.layer_norm.weight", f"{ours}.attention_norm.weight"))
    last = 1
    if stack == "decoder":
        last = 2
        entries += _attention(f"{theirs}.1.EncDecAttention", f"{ours}.cross")
        entries.append(same(f"{theirs}.1.layer_norm.weight", f"{ours}.cross_norm.weight"))
    inner = {"wi_0": "gate", "wi_1": "up"} if config.gated else {"wi": "up"}
    for a, b in (inner | {"wo": "output"}).items():
        theirs_name = f"{theirs}.{last}.DenseReluDense.{a}.weight"
        entries.append(same(theirs_name, f"{ours}.ffn.{b}.weight"))
    return [*entries, same(f"{theirs}.{last}.layer_norm.weight", f"{ours}.ffn_norm.weight")]


FAMILY = Family(
    name="t5",
    architecture="T5ForConditionalGeneration",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=lambda config: _block(config, "decoder"),
    encoder_layer=lambda config: _block(config, "encoder"),
    also=("mt5",),
    aliases={
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    },
    # Cross-attention has no bias of its own, though the first files have one for it.
    ignored=("EncDecAttention.relative_attention_bias.weight",),
    tied_by_files=("lm_head.weight", "shared.weight"),
    presets=PRESETS,
)
