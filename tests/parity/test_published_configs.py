"""What published config files say is what our presets are; no key of theirs is dropped unread."""

from typing import Any

import pytest

from megalite.errors import CheckpointError
from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.families.table import Family, decisive
from megalite.models.hugging_face import family_of as chosen_family
from tests.parity.published import CONFIGS as FIRST
from tests.parity.published_heirs import HEIRS

CONFIGS = FIRST | HEIRS


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
    assert not family_of(theirs).unread(theirs)


def classes() -> list[tuple[str, dict[str, Any]]]:
    """All keys that transformers' classes know, with their defaults."""
    import transformers

    names = ("Llama", "GPT2", "OPT", "Bloom", "Falcon", "T5", "Bart", "CodeGen", "Qwen2", "GPTNeoX")
    names += ("GPTJ", "MT5", "MBart", "Glm", "Glm4", "Mistral", "Qwen3", "Gemma2", "Gemma3Text")
    names += ("T5Gemma", "Pegasus")
    return [(name, getattr(transformers, f"{name}Config")().to_dict()) for name in names]


@pytest.mark.parametrize(("name", "theirs"), classes(), ids=[name for name, _ in classes()])
def test_no_key_that_transformers_knows_is_dropped_unread(name: str, theirs: dict[str, Any]):
    assert not family_of(theirs).unread(theirs)


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
        ("Llama-2-7b", {"alibi": True}, "alibi is True"),
        (
            "Llama-2-7b",
            {"rope_scaling": {"type": "linear", "factor": 2.0}}
            | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
            "factor is 4.0 in rope_parameters and 2.0",
        ),
        ("Llama-2-7b", {"qk_norm": True}, "qk_norm is True"),
        ("Llama-2-7b", {"quantization_config": {"bits": 4}}, "quantization_config"),
        (
            "Llama-2-7b",
            {"rope_scaling": {"type": "linear", "factor": 2.0} | {"partial_rotary_factor": 0.5}},
            "partial_rotary_factor",
        ),
        ("gpt2", {"logit_scale": 0.1}, "logit_scale is 0.1"),
        ("Llama-2-7b", {"rope_scaling": {"rope_theta": 5.0}, "rope_theta": 6.0}, "two values"),
        (
            "Llama-2-7b",
            {"num_hidden_layers": "32"},
            'num_hidden_layers must be a number, came "32"',
        ),
        ("Llama-2-7b", {"num_attention_heads": [32]}, "num_attention_heads must be a number"),
        ("falcon-rw-1b", {"hidden_size": None}, "hidden_size must be a number, came null"),
        ("Qwen2.5-0.5B", {"max_window_layers": "a"}, "max_window_layers must be a number"),
        ("bloom", {"initializer_range": {}}, "initializer_range must be a number"),
        ("Llama-2-7b", {"tie_word_embeddings": "no"}, "must be true or false"),
        ("Llama-2-7b", {"architectures": ["LlamaForSequenceClassification"]}, "one label"),
    ],
)
def test_what_no_model_here_can_have_is_refused_by_key(name, change, said):
    theirs = CONFIGS[name][2] | change
    with pytest.raises(ValueError, match=said):
        family_of(theirs).read(theirs)


@pytest.mark.parametrize(
    ("stack", "change", "said"),
    [
        ("encoder", {"hidden_size": 3584}, "must have one hidden_size, came 3584 and 2304"),
        ("encoder", {"intermediate_size": 10}, "must have one ffn_size, came 10 and 9216"),
        ("decoder", {"sliding_window": 8}, "of encoder and decoder must be alike"),
        ("decoder", {"cross_attention_hidden_size": 64}, "cross_attention_hidden_size 64"),
        ("decoder", {"hidden_activation": "relu", "hidden_act": "relu"}, "hidden_activation must"),
        ("encoder", {"qk_norm": True}, "qk_norm is True"),
    ],
)
def test_stacks_that_no_block_here_has_both_of_are_refused_by_key(stack, change, said):
    theirs = CONFIGS["t5gemma-2b-2b-ul2"][2]
    with pytest.raises(ValueError, match=said):
        family_of(theirs).read(theirs | {stack: theirs[stack] | change})


def test_a_key_that_no_one_knows_is_named_in_a_stacks_config_too():
    theirs = CONFIGS["t5gemma-2b-2b-ul2"][2]
    changed = theirs | {"encoder": theirs["encoder"] | {"residual_gate": 2}}
    assert family_of(theirs).unread(changed) == ["encoder.residual_gate"]


def test_values_that_change_nothing_are_passed_over():
    """A base that stands where the newer versions put it, how YaRN was trained, an unused null."""
    llama, qwen = CONFIGS["Llama-2-7b"][2], CONFIGS["Qwen2.5-0.5B"][2]
    inner = llama | {"rope_theta": None, "rope_scaling": {"type": "default", "rope_theta": 5e5}}
    assert family_of(inner).read(inner).rope_base == 5e5
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    read = family_of(llama).read
    said = read(llama | {"rope_scaling": yarn | {"finetuned": True}})
    assert said == read(llama | {"rope_scaling": yarn})
    assert family_of(qwen).read(qwen | {"max_window_layers": None}).windows == ()


def test_baichuan_2_is_known_by_its_vocabulary_when_that_has_grown():
    theirs = CONFIGS["Baichuan2-13B"][2] | {"vocab_size": 125760}
    del theirs["z_loss_weight"]
    assert family_of(theirs).read(theirs).normalised_head


def test_only_falcons_new_blocks_have_groups_of_heads():
    """The old ones have a key head each, or one; such a folder did not load in transformers."""
    theirs = CONFIGS["falcon-rw-1b"][2] | {"num_kv_heads": 2}
    config = family_of(theirs).read(theirs)
    assert config.kv_heads == config.num_heads
    with pytest.raises(CheckpointError, match="one can't have its num_kv_heads"):
        chosen_family(config.model_copy(update={"num_kv_heads": 2, "position": "rope"}))


@pytest.mark.parametrize("preset", ["glm-tiny", "chatglm2-tiny"])
def test_a_model_made_here_is_written_as_what_transformers_has(preset: str):
    assert chosen_family(ModelConfig(preset=preset)).name == "glm"


def test_a_family_that_refuses_a_model_is_not_the_closest():
    with pytest.raises(CheckpointError, match="is no glm, the closest.* its rope_interleaved"):
        chosen_family(ModelConfig(rotary_size=32))


def test_opts_activation_has_the_names_that_transformers_knows():
    theirs = CONFIGS["opt-125m"][2] | {"activation_function": "gelu_new"}
    family = family_of(theirs)
    config = family.read(theirs)
    assert config.activation == "gelu_tanh"
    assert family.write(config)["activation_function"] == "gelu_new"


def test_heads_of_another_width_than_the_hidden_size_tells_are_written():
    theirs = CONFIGS["Qwen2.5-0.5B"][2] | {"head_dim": 80}
    family = family_of(theirs)
    assert not family.lost(family.read(theirs))


def test_a_key_that_no_one_knows_is_named():
    """What it means is unknown here, so it is told and not refused."""
    theirs = CONFIGS["Llama-2-7b"][2] | {"residual_gate": 2, "bos_token_id": 1, "qk_norm": False}
    assert family_of(theirs).unread(theirs) == ["residual_gate"]
