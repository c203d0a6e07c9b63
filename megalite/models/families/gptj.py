"""GPT-J: part of a head turns, attention beside feed-forward with one norm, a biased head.

Wang and Komatsuzaki 2021, kingoflolz/mesh-transformer-jax. CodeGen was built on it and keeps its
query, key and value in one matrix.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.moss import FAMILY as CODEGEN
from megalite.models.families.moss import shared_keys, shared_values
from megalite.models.families.table import Entry, Family, pairs
from megalite.models.presets.gptj import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**(BASE | shared_values(theirs)))


def _layer(_config: ModelConfig) -> list[Entry]:
    theirs, ours = "transformer.h.{i}.", "decoder.layers.{i}."
    names = {"ln_1": "attention_norm", "mlp.fc_in": "ffn.up", "mlp.fc_out": "ffn.output"}
    linears = {"q": "query", "k": "key", "v": "value", "out": "output"}
    linears = {f"attn.{a}_proj": f"attention.{b}" for a, b in linears.items()}
    return pairs(theirs, ours, names, "weight", "bias") + pairs(theirs, ours, linears, "weight")


FAMILY = Family(
    name="gptj",
    architecture="GPTJForCausalLM",
    is_scored=True,
    from_theirs=_from_theirs,
    to_theirs=shared_keys,
    once=CODEGEN.once,
    layer=_layer,
    aliases=CODEGEN.aliases,
    fixed={"rotary": True, "scale_attn_weights": True, "tie_word_embeddings": False},
    ignored=CODEGEN.ignored,
    presets=PRESETS,
)
