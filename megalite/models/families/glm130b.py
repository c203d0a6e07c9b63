"""GLM-130B: DeepNorm, GeGLU, RoPE. Zeng et al. 2022, arXiv:2210.02414; THUDM/GLM-130B.

Its config is a SwissArmyTransformer ``model_config.json``; here it is a config.json with those keys
and the model type ``glm-130b``, and its weights those of one model-parallel process.
"""

import math
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.chatglm import FAMILY as CHATGLM
from megalite.models.families.chatglm import shifted_norms
from megalite.models.families.table import Entry, Family, pairs, same, stacked
from megalite.models.presets.glm130b import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    layers = theirs["num_layers"]
    values: dict[str, Any] = {
        "vocab_size": theirs["vocab_size"],
        "hidden_size": theirs["hidden_size"],
        "num_layers": layers,
        "num_heads": theirs["num_attention_heads"],
        "ffn_size": theirs["inner_hidden_size"],
        "max_positions": theirs["max_sequence_length"],
        "norm_eps": theirs.get("layernorm_epsilon", 1e-5),
        "residual_scale": math.sqrt(2 * layers),
        "rope_axes": 2 if theirs.get("position_encoding_2d") else 1,
        "dropout": theirs.get("hidden_dropout", 0.0),
        "attention_dropout": theirs.get("attention_dropout", 0.0),
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
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
    }


def _once(config: ModelConfig) -> list[Entry]:
    embedding = same("transformer.word_embeddings.weight", "embedding.weight")
    return [embedding, *shifted_norms(config)]


def _layer(config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.layers.{i}.mlp.", "decoder.layers.{i}.ffn."
    rest = [e for e in CHATGLM.layer(config) if ".mlp." not in e.theirs]
    for kind in ("weight", "bias"):
        rest += pairs(theirs, ours, {"dense_4h_to_h": "output"}, kind)
        inner = f"{ours}up.{kind}", f"{ours}gate.{kind}"
        name = f"{theirs}dense_h_to_4h.{kind}"
        rest.append(stacked(name, *inner, sizes=lambda config: [config.ffn_size] * 2))
    return rest


FAMILY = Family(
    name="glm-130b",
    architecture="GLM130B",
    from_theirs=_from_theirs,
    to_theirs=_to_theirs,
    once=_once,
    layer=_layer,
    fixed={"no_glu": False},
    ignored=("rotary_emb.inv_freq",),
    presets=PRESETS,
)
