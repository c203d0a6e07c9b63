"""T5Gemma: two stacks of Gemma 2's blocks, each with a table of tokens.

The encoder's windows reach to both sides. Zhang et al. 2025, arXiv:2504.06225. Stacks of two widths
(9b-2b) are refused, as one block here serves both.
"""

from dataclasses import replace
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.gemma2 import FAMILY as GEMMA2
from megalite.models.families.gemma2 import module_keys, module_values
from megalite.models.families.table import Entry, Family, pairs, same
from megalite.models.presets.t5gemma import PRESETS

STACKS = ("encoder", "decoder")
# What each stack's config says for itself, or the whole model's says for both.
APART = {
    *("num_layers", "windows", "logit_cap", "init_std"),
    *("dropout", "attention_dropout", "tie_embeddings"),
}


def _stack_from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    width = theirs.get("cross_attention_hidden_size")
    if width not in (None, theirs["hidden_size"]):
        raise ValueError(
            f"cross_attention_hidden_size {width}: must be hidden_size {theirs['hidden_size']}"
        )
    return ModelConfig(**module_values(theirs), dropout=theirs.get("dropout_rate") or 0.0)


STACK = replace(
    GEMMA2,
    name="t5_gemma_module",
    from_theirs=_stack_from_theirs,
    is_scored=False,
    fixed={"hidden_activation": "gelu_pytorch_tanh"},
    presets={},
)


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    encoder, decoder = (STACK.read(theirs[name]) for name in STACKS)
    values, others = decoder.model_dump(), encoder.model_dump()
    for key in values:
        if key not in APART and values[key] != others[key]:
            raise ValueError(
                f"encoder and decoder must have one {key}, came {others[key]} and {values[key]}"
            )
    deepest = max(encoder, decoder, key=lambda stack: stack.num_layers)
    for stack in (encoder, decoder):
        layers = range(stack.num_layers)
        if any(stack.window_of(layer) != deepest.window_of(layer) for layer in layers):
            raise ValueError("layer_types and sliding_window of encoder and decoder must be alike")
    if theirs.get("vocab_size") not in (None, decoder.vocab_size):
        raise ValueError(f"vocab_size must be that of its stacks, {decoder.vocab_size}")
    own = {
        "num_encoder_layers": encoder.num_layers,
        "windows": deepest.windows,
        "separate_embeddings": True,
        "tie_embeddings": theirs.get("tie_word_embeddings") is not False,
        "dropout": theirs.get("dropout_rate") or 0.0,
        "attention_dropout": theirs.get("attention_dropout") or 0.0,
    }
    return ModelConfig(**(values | own))


def _stack_to_theirs(config: ModelConfig, name: str) -> dict[str, Any]:
    layers = config.num_layers if name == "decoder" else config.num_encoder_layers
    stack = config.model_copy(update={"num_layers": layers})
    across = {"cross_attention_hidden_size": config.hidden_size} if name == "decoder" else {}
    return across | {
        "model_type": STACK.name,
        **STACK.fixed,
        **module_keys(stack),
        "dropout_rate": config.dropout,
        "is_decoder": name == "decoder",
    }


def _to_theirs(config: ModelConfig) -> dict[str, Any]:
    return {name: _stack_to_theirs(config, name) for name in STACKS} | {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "dropout_rate": config.dropout,
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.standard_deviation,
        "is_encoder_decoder": True,
    }


def _once(config: ModelConfig) -> list[Entry]:
    entries = [
        same("model.encoder.embed_tokens.weight", "encoder.embedding.weight"),
        same("model.decoder.embed_tokens.weight", "embedding.weight"),
        *(same(f"model.{name}.norm.weight", f"{name}.norm.weight") for name in STACKS),
    ]
    head = same("lm_head.out_proj.weight", "head.weight")
    return entries if config.tie_embeddings else [*entries, head]


def _block(config: ModelConfig, stack: str) -> list[Entry]:
    """Entries of a layer of the encoder or the decoder."""
    theirs, ours = f"model.{stack}.layers.{{i}}.", f"{stack}.layers.{{i}}."
    linears = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "output"}
    attentions = {"self_attn": "attention"}
    attentions |= {"cross_attn": "cross"} if stack == "decoder" else {}
    norms: dict[str, str] = {}
    products: dict[str, str] = {}
    for a, b in (attentions | {"feedforward": "ffn"}).items():
        norms |= {f"pre_{a}_layernorm": f"{b}_norm", f"post_{a}_layernorm": f"{b}_post_norm"}
    for a, b in attentions.items():
        products |= {f"{a}.{c}": f"{b}.{d}" for c, d in linears.items()}
    kinds = ("weight", "bias") if config.qkv_bias else ("weight",)
    feed = {"mlp.gate_proj": "ffn.gate", "mlp.up_proj": "ffn.up", "mlp.down_proj": "ffn.output"}
    return pairs(theirs, ours, norms | feed, "weight") + pairs(theirs, ours, products, *kinds)


FAMILY = Family(
    name="t5gemma",
    architecture="T5GemmaForConditionalGeneration",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=lambda config: _block(config, "decoder"),
    encoder_layer=lambda config: _block(config, "encoder"),
    presets=PRESETS,
    sections=dict.fromkeys(STACKS, STACK),
)
