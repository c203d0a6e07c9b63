"""Pegasus: mBART with fixed positions and no norm of embeddings.

Zhang et al. 2019, arXiv:1912.08777. Files may hold the fixed table, which is made here.
"""

from dataclasses import replace
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.bart import FAMILY as BART
from megalite.models.families.bart import VERSIONS, values_of
from megalite.models.presets.pegasus import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**(BASE | values_of(theirs)))


FAMILY = replace(
    BART,
    name="pegasus",
    architecture="PegasusForConditionalGeneration",
    from_theirs=_from_theirs,
    ignored=("embed_positions.weight", *VERSIONS),
    fixed={
        "add_final_layer_norm": True,
        "normalize_before": True,
        "normalize_embedding": False,
        "static_position_embeddings": True,
        "tie_word_embeddings": True,
    },
    presets=PRESETS,
)
