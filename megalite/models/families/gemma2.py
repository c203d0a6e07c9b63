"""Gemma 2: norms before and after, windows in every second layer, capped scores and logits.

Gemma team 2024, arXiv:2408.00118.
"""

from typing import Any

from megalite.models.config import ModelConfig
from megalite.models.families.gemma3 import keys_of, values_of
from megalite.models.families.llama import FAMILY as LLAMA
from megalite.models.families.rope import read_rope, write_rope
from megalite.models.families.table import Family
from megalite.models.families.windows import read_windows, write_windows
from megalite.models.presets.gemma2 import BASE, PRESETS

CAPS = {"final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0}  # where a key is missing


def module_values(theirs: dict[str, Any]) -> dict[str, Any]:
    """Our values of a config's keys; each stack of T5Gemma has the same."""
    values = values_of(theirs)
    windows = read_windows(theirs, [layer % 2 == 0 for layer in range(values["num_layers"])], 4096)
    caps = [theirs.get(key, cap) or 0.0 for key, cap in CAPS.items()]
    own = {"logit_cap": caps[0], "score_cap": caps[1], "windows": windows}
    return BASE | values | read_rope(theirs) | own


def module_keys(config: ModelConfig) -> dict[str, Any]:
    """The inverse of :func:`module_values`."""
    cap = {"attn_logit_softcapping": config.score_cap or None}
    return keys_of(config) | write_windows(config) | write_rope(config) | cap


FAMILY = Family(
    name="gemma2",
    architecture="Gemma2ForCausalLM",
    from_theirs=lambda theirs: ModelConfig(**module_values(theirs)),
    to_theirs=module_keys,
    once=LLAMA.once,
    layer=LLAMA.layer,
    is_scored=True,
    aliases={"hidden_act": "hidden_activation"},
    fixed={"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False},
    presets=PRESETS,
)
