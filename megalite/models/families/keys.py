"""Keys of published configs that no family reads: which change nothing, and which must be off."""

import json
from collections.abc import Collection, Mapping
from typing import Any

_NEUTRAL = {  # they change nothing that a forward pass computes, by what they are for
    "names": "architectures model_type transformers_version dtype torch_dtype auto_map",
    "special tokens": "tokenizer_class attn_implementation cache_implementation bad_words_ids "
    "suppress_tokens begin_suppress_tokens",
    "what a call gives": "use_cache return_dict output_attentions output_hidden_states output_past "
    "early_stopping task_specific_params max_length do_sample temperature top_k top_p num_beams "
    "repetition_penalty length_penalty no_repeat_ngram_size min_length num_return_sequences",
    "other heads": "classif_dropout id2label label2id num_labels problem_type classifier_dropout "
    "classifier_dropout_rate finetuning_task summary_activation summary_first_dropout "
    "summary_proj_to_labels summary_type summary_use_proj",
    "training": "activation_dropout layerdrop encoder_layerdrop decoder_layerdrop "
    "initializer_factor initializer_range init_std gradient_checkpointing embd_pdrop resid_pdrop "
    "attn_pdrop",
    "the same numbers in another way": "pretraining_tp slow_but_exact chunk_size_feed_forward "
    "masked_softmax_fusion bias_dropout_fusion attention_softmax_in_fp32 skip_bias_add "
    "skip_bias_add_qkv apply_query_key_layer_scaling fp32_residual_connection "
    "reorder_and_upcast_attn torchscript use_flash_attn",
    "said by another key": "n_ctx seq_length dense_act_fn is_gated_act n_positions "
    "is_encoder_decoder is_decoder max_sequence_length offset_alibi extra_pos_embeddings "
    "original_rope num_hidden_layers",
    "unused by the published code": "attention_probs_dropout_prob hidden_dropout_prob",
    "read only where a prefix is trained": "prefix_projection",
}
NEUTRAL = frozenset(key for keys in _NEUTRAL.values() for key in keys.split())

# Some models compute otherwise by these keys; a family that doesn't read one must find it off.
OFF: dict[str, tuple[Any, ...]] = {
    "add_bias_logits": (),
    "add_cross_attention": (),
    "alibi": (),
    "attention_multiplier": (1.0,),
    "attn_logit_softcapping": (),
    "embedding_multiplier": (1.0,),
    "final_logit_softcapping": (),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "norm_head": (),
    "num_experts": (1,),
    "num_local_experts": (1,),
    "partial_rotary_factor": (1.0,),
    "pre_seq_len": (),
    "qk_layernorm": (),
    "qk_norm": (),
    "quantization_bit": (),
    "quantization_config": (),
    "residual_multiplier": (1.0,),
    "rope_ratio": (1.0,),
    "static_position_embeddings": (),
    "use_qk_norm": (),
    "use_sliding_window": (),
}


_KINDS = {bool: "true or false", int: "a number", float: "a number"}  # of a default


class Recorded(dict[str, Any]):
    """A config that remembers which of its keys were asked for.

    Attributes:
        read: these keys.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Copy a config."""
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's, but that a default that is a number needs one.

        Raises:
            ValueError: the value is of another type.
        """
        self.read.add(key)
        value = super().get(key, default)
        if isinstance(default, int | float) and not isinstance(value, int | float | None):
            raise ValueError(f"{key} must be {_KINDS[type(default)]}, came {json.dumps(value)}")
        return value

    def __getitem__(self, key: str) -> Any:
        """As a dict's; what has no default is a size, or a config.

        Raises:
            ValueError: the value is of another type.
        """
        self.read.add(key)
        value = super().__getitem__(key)
        if not isinstance(value, int | float | Mapping):
            raise ValueError(f"{key} must be a number, came {json.dumps(value)}")
        return value

    def __contains__(self, key: object) -> bool:
        self.read.add(str(key))
        return super().__contains__(key)


def check_off(theirs: Mapping[str, Any], read: Collection[str]) -> None:
    """Refuse keys by which another model would be computed than the one that was read.

    Args:
        theirs: a config.
        read: the keys of it that a family reads.

    Raises:
        ValueError: it names the first one that isn't off.
    """
    rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
    for key in sorted(OFF.keys() - read):
        value = theirs.get(key) or (rope.get(key) if isinstance(rope, dict) else None)
        if value and value not in OFF[key]:
            raise ValueError(f"{key} is {value!r}: no model of this family here has it")


def says_nothing(key: str) -> bool:
    """Whether a key that no one reads can be left alone."""
    return key in NEUTRAL or key in OFF or key.startswith("_") or key.endswith("_token_id")
