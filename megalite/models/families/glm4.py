"""GLM-4-0414: GLM-4 with norms before and after its sub-layers. GLM team 2025, THUDM/GLM-4."""

from dataclasses import replace

from megalite.models.config import ModelConfig
from megalite.models.families.glm import FAMILY as GLM
from megalite.models.families.glm import NORMS, layer_of, values_of
from megalite.models.presets.glm4 import PRESETS

_NORMS = NORMS | {
    "post_self_attn_layernorm": "attention_post_norm",
    "post_mlp_layernorm": "ffn_post_norm",
}

FAMILY = replace(
    GLM,
    name="glm4",
    architecture="Glm4ForCausalLM",
    from_theirs=lambda theirs: ModelConfig(**values_of(theirs), norm_position="both"),
    layer=lambda config: layer_of(config, _NORMS),
    presets=PRESETS,
)
