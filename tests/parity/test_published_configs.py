"""What published config files say is what our presets are; no key of theirs is dropped unread."""

from typing import Any

import pytest

from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.families.table import Family, decisive
from tests.parity.published import CONFIGS as FIRST
from tests.parity.published_heirs import HEIRS

CONFIGS = FIRST | HEIRS

# Keys that change nothing that a forward pass computes, by what they are for.
NEUTRAL = {
    "names": {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}
    | {
        "_name_or_path",
        "auto_map",
        "tokenizer_class",
        "attn_implementation",
        "cache_implementation",
    },
    "special tokens": {"bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id"}
    | {"decoder_start_token_id", "forced_eos_token_id", "mask_token_id", "gmask_token_id"},
    "what a call gives": {"use_cache", "return_dict", "output_attentions", "output_hidden_states"}
    | {"output_past", "early_stopping", "task_specific_params", "max_length", "num_beams"},
    "other heads": {"id2label", "label2id", "problem_type", "classifier_dropout"}
    | {"_num_labels", "classif_dropout"}
    | {"summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type"}
    | {"summary_use_proj"},
    "training": {"activation_dropout", "layerdrop", "encoder_layerdrop", "decoder_layerdrop"}
    | {"initializer_factor", "initializer_range", "init_std", "gradient_checkpointing"}
    | {"embd_pdrop", "resid_pdrop", "attn_pdrop"},
    "the same numbers in another way": {
        "pretraining_tp",
        "slow_but_exact",
        "chunk_size_feed_forward",
    }
    | {"masked_softmax_fusion", "bias_dropout_fusion", "attention_softmax_in_fp32", "skip_bias_add"}
    | {"skip_bias_add_qkv", "apply_query_key_layer_scaling", "fp32_residual_connection"}
    | {"reorder_and_upcast_attn", "quantization_bit"},
    "said by another key": {"n_ctx", "seq_length", "dense_act_fn", "is_gated_act", "n_positions"}
    | {"is_encoder_decoder", "is_decoder", "max_sequence_length", "offset_alibi"}
    | {"_sliding_window_pattern", "extra_pos_embeddings", "original_rope", "num_hidden_layers"},
    "unused by the published code": {"add_bias_logits", "static_position_embeddings"}
    | {"attention_probs_dropout_prob", "hidden_dropout_prob"},
    "off unless a prefix is trained": {"pre_seq_len", "prefix_projection"},
}


class Recording(dict[str, Any]):
    """A config that remembers which of its keys were asked for."""

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)


def unread(family: Family, theirs: dict[str, Any]) -> set[str]:
    """Keys that are neither read, nor fixed to a value, nor without effect."""
    family.read(theirs)
    recorded = Recording(family.canonical(theirs))
    family.from_theirs(recorded)
    known = recorded.read | set(family.fixed) | set(family.aliases) | {family.marker}
    return set(theirs) - known - {key for keys in NEUTRAL.values() for key in keys}


def family_of(theirs: dict[str, Any]) -> Family:
    (family,) = [family for family in FAMILIES.values() if family.knows(theirs)]
    return family


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_config_is_its_preset(name: str):
    preset, more, theirs = CONFIGS[name]
    expected = ModelConfig(**({"preset": preset} if preset else {}), **more)
    assert decisive(family_of(theirs).read(theirs)) == decisive(expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_key_of_a_published_config_is_dropped_unread(name: str):
    theirs = CONFIGS[name][2]
    assert not unread(family_of(theirs), theirs)


def classes() -> list[tuple[str, dict[str, Any]]]:
    """All keys that transformers' classes know, with their defaults."""
    import transformers

    names = ("Llama", "GPT2", "OPT", "Bloom", "Falcon", "T5", "Bart", "CodeGen", "Qwen2", "GPTNeoX")
    names += ("GPTJ", "MT5", "MBart", "Glm", "Glm4", "Mistral", "Qwen3", "Gemma2", "Gemma3Text")
    return [(name, getattr(transformers, f"{name}Config")().to_dict()) for name in names]


@pytest.mark.parametrize(("name", "theirs"), classes(), ids=[name for name, _ in classes()])
def test_no_key_that_transformers_knows_is_dropped_unread(name: str, theirs: dict[str, Any]):
    assert not unread(family_of(theirs), theirs)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("Llama-2-7b", {"rope_scaling": {"type": "longrope", "factor": 2}}, "longrope"),
        ("Llama-2-7b", {"hidden_act": "gelu"}, "hidden_act"),
        ("Llama-2-7b", {"rope_parameters": {"rope_theta": 5.0}, "rope_theta": 6.0}, "two values"),
        ("Llama-3.1-8B", {"rope_scaling": {"type": "yarn", "factor": 2, "mscale": 1}}, "mscale"),
        ("bloom-560m", {"n_inner": 100}, "n_inner"),
        ("bloom-560m", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("bloom-560m", {"hidden_size": 7}, "n_embed"),
        ("gpt2", {"activation_function": "mish"}, "mish"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("bart-base", {"normalize_before": True}, "normalize_before"),
    ],
)
def test_what_no_model_here_can_have_is_refused_by_key(name, change, said):
    theirs = CONFIGS[name][2] | change
    with pytest.raises(ValueError, match=said):
        family_of(theirs).read(theirs)
