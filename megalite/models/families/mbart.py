"""mBART: BART with norms before its sub-layers. Liu et al. 2020, arXiv:2001.08210."""

from dataclasses import replace
from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.bart import FAMILY as BART
from megalite.models.families.bart import values_of
from megalite.models.presets.mbart import BASE, PRESETS


def _from_theirs(theirs: dict[str, Any]) -> ModelConfig:
    return ModelConfig(**(BASE | values_of(theirs)))


FAMILY = replace(
    BART,
    name="mbart",
    architecture="MBartForConditionalGeneration",
    from_theirs=_from_theirs,
    fixed={
        "add_final_layer_norm": True,
        "normalize_before": True,
        "normalize_embedding": True,
        "tie_word_embeddings": True,
    },
    presets=PRESETS,
)
