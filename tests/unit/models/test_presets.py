"""Presets are the models that were published."""

import pytest

from megalite.cli import main
from megalite.config import load
from megalite.errors import CheckpointError, ConfigError
from megalite.models.config import ModelConfig
from megalite.models.families import FAMILIES
from megalite.models.hugging_face import family_of
from megalite.models.presets import PRESETS
from megalite.models.size import num_parameters
from megalite.stages.pretrain import PretrainConfig

COUNTS = {  # of the published checkpoints, without what tied embeddings share
    "gpt2": 124_439_808,
    "gpt2-xl": 1_557_611_200,
    "llama-7b": 6_738_415_616,
    "llama2-70b": 68_976_648_192,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "bloom-560m": 559_214_592,
    "bloom-176b": 176_247_271_424,
    "falcon-7b": 6_921_720_704,
    "falcon-40b": 41_303_293_952,
    "t5-base": 222_903_552,
    "flan-t5-xl": 2_849_757_184,
    "bart-base": 139_420_416,
    "chatglm2-6b": 6_243_584_000,
    "chatglm-6b": 6_173_286_400,
    "baichuan-13b": 13_264_901_120,
    "llama3-8b": 8_030_261_248,
    "llama3.2-1b": 1_235_814_400,
    "yi-6b": 6_061_035_520,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2-7b": 7_615_616_512,
    "internlm2-7b": 7_737_708_544,
    "pythia-160m": 162_322_944,
    "gpt-neox-20b": 20_554_567_680,
    "gpt-j-6b": 6_050_882_784,
    "mt5-small": 300_176_768,
    "mbart-large-cc25": 610_851_840,
    "pegasus-large": 568_699_904,  # without the fixed table of positions, twice 1,048,576
    "glm-4-9b": 9_399_951_360,
    "glm-4-32b-0414": 32_566_081_536,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-nemo": 12_247_782_400,
    "qwen3-0.6b": 596_049_920,
    "qwen3-8b": 8_190_735_360,
    "gemma2-2b": 2_614_341_888,
    "gemma2-27b": 27_227_128_320,
    "gemma3-270m": 268_098_176,
    "gemma3-1b": 999_885_952,
}
ROUND = {  # as their papers print them, in billions
    "palm-8b": 8.63,
    "palm-62b": 62.50,
    "palm-540b": 540.35,
    "glm-130b": 130.0,
    "gpt3-175b": 175.0,
    "codegen-16b": 16.0,
}


@pytest.mark.parametrize("name", COUNTS)
def test_a_preset_has_as_many_parameters_as_the_published_model(name):
    assert num_parameters(ModelConfig(preset=name)) == COUNTS[name]


def test_t5gemma_has_as_many_as_the_published_base_model():
    """By its sizes alone: two stacks of 12 blocks, each with its own table of tokens."""
    sizes = {"hidden_size": 768, "num_encoder_layers": 12, "num_layers": 12, "num_heads": 12}
    sizes |= {"num_kv_heads": 12, "head_size": 64, "ffn_size": 2048}
    assert num_parameters(ModelConfig(preset="t5gemma-2b-2b", **sizes)) == 591_490_560


@pytest.mark.parametrize("name", ROUND)
def test_a_preset_has_about_as_many_as_its_paper_says(name):
    count = num_parameters(ModelConfig(preset=name)) / 1e9
    assert count == pytest.approx(ROUND[name], rel=0.012)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_a_family_can_say_its_presets_and_has_a_tiny_one(family):
    for name, preset in family.presets.items():
        assert not family.lost(ModelConfig(preset=name)), name
        assert preset.source
    assert any(name.endswith("-tiny") for name in family.presets)
    assert sum(len(other.presets) for other in FAMILIES.values()) == len(PRESETS)


def test_keys_beside_a_preset_replace_its():
    config = load(PretrainConfig, None, ["--model.preset", "llama2-70b", "--model.num_layers", "2"])
    assert (config.model.num_layers, config.model.kv_heads) == (2, 8)
    assert ModelConfig(**config.model.model_dump()) == config.model


def test_an_unknown_preset_names_the_closest():
    with pytest.raises(ConfigError, match="no such preset; did you mean llama2-7b"):
        load(PretrainConfig, None, ["--model.preset", "llama2-7B"])


@pytest.mark.parametrize("preset", ["t5-tiny", "baichuan2-tiny"])
def test_a_reward_model_may_be_of_no_family(preset: str):
    assert family_of(ModelConfig(preset="llama-tiny", head="value")).name == "llama"
    with pytest.raises(CheckpointError, match="transformers has no class of it"):
        family_of(ModelConfig(preset=preset, head="value"))


def test_the_command_lists_them(capsys):
    assert main(["models", "--name", "chatglm2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines][0] == ["chatglm2-6b", "chatglm2", "6,243,584,000"]
    assert main(["models", "--name", "nothing"]) == 2
    assert "no preset" in capsys.readouterr().err
