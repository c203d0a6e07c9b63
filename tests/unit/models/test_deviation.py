"""Initial values as published: formulas, and the deviation that each role's matrix gets."""

import math

import pytest
from pydantic import ValidationError

from megalite.distributed.mesh import Mesh
from megalite.engine.initial import initialise
from megalite.models.config import ModelConfig
from megalite.models.deviation import NAMES, evaluate
from megalite.models.transformer import Transformer

SIZES = dict(
    zip(NAMES, (12288, 49152, 50257, 96, 8, 128, 96, 24, 12288, 49152, 0.005), strict=True)
)
SHAPE = {"vocab_size": 50, "hidden_size": 24, "num_heads": 3, "ffn_size": 40, "num_layers": 5}
T5 = {
    "embedding": 1.0,
    "query": "(D H)^-0.5",
    "key": "D^-0.5",
    "value": "D^-0.5",
    "relative": "D^-0.5",
    "attention_output": "(N H)^-0.5",
    "ffn": "D^-0.5",
    "ffn_output": "F^-0.5",
    "head": 1.0,
}
DEEP_NORM = {
    "query": "xavier",
    "key": "xavier",
    "value": "(2L)^-0.5 xavier",
    "attention_output": "(2L)^-0.5 xavier",
    "ffn": "(2L)^-0.5 xavier",
    "ffn_output": "(2L)^-0.5 xavier",
}


@pytest.mark.parametrize(
    ("told", "value"),
    [
        (0.02, 0.02),
        ("sqrt(2/5D)", math.sqrt(2 / (5 * 12288))),
        ("sqrt(1/3D)", math.sqrt(1 / (3 * 12288))),
        ("sqrt(2 / (5 * D))", math.sqrt(2 / (5 * 12288))),
        ("0.006/sqrt(2L)", 0.006 / math.sqrt(192)),
        ("(2L)^-0.5 xavier", 0.005 / math.sqrt(192)),
        ("(8 L)^-0.25 * xavier", 0.005 * (8 * 96) ** -0.25),
        ("(D H)^-0.5", (12288 * 128) ** -0.5),
        ("sqrt(2/(fan_in + fan_out))", math.sqrt(2 / (12288 + 49152))),
        ("-(-0.5)", 0.5),
    ],
)
def test_a_formula_has_the_papers_value(told, value):
    assert evaluate(told, SIZES) == pytest.approx(value, rel=1e-15)


FOREIGN = ("sqrt(2/5Q)", "__import__('os')", "sqrt", "D;D", "")
NO_NUMBER = ("0 - D", "D/0", "9**9**9**9", "(-1)^0.5")


@pytest.mark.parametrize("told", FOREIGN + NO_NUMBER)
def test_what_is_no_formula_is_refused_with_those_that_are(told):
    with pytest.raises(
        ValueError, match=r"must be a positive number or a formula .*'sqrt\(2/5D\)'"
    ):
        evaluate(told, SIZES)
    with pytest.raises(ValidationError, match="a positive number or a formula"):
        ModelConfig(init_std=told)


@pytest.mark.parametrize("told", [0.0, "0", -0.02, float("nan")])
def test_a_deviation_of_everything_is_positive(told):
    with pytest.raises(ValidationError, match="must"):
        ModelConfig(init_std=told)


def deviations(**more) -> dict[str, float]:
    """The deviation of each matrix of a model's first blocks, and of what surrounds them."""
    model = Transformer(ModelConfig(**(SHAPE | more)), Mesh.single())
    found = {}
    for name, module in model.named_modules():
        for parameter, initial in getattr(module, "initial", {}).items():
            if initial.std and (".layers." not in name or ".layers.0." in name):
                found[f"{name}.{parameter}".replace("layers.0.", "")] = initial.std
    return found


def test_without_roles_what_adds_to_the_residual_alone_is_smaller():
    for name, std in deviations(init_std="sqrt(1/3D)", tie_embeddings=False).items():
        plain = math.sqrt(1 / 72)
        scaled = plain / math.sqrt(10) if "output" in name else plain
        assert std == pytest.approx(scaled, rel=1e-15), name
    assert set(deviations(scaled_init=False).values()) == {0.02}


def test_t5s_roles_have_mesh_tensorflows_deviations():
    """``T5PreTrainedModel._init_weights`` of transformers, with factor 1."""
    more = {"num_encoder_layers": 4, "position": "relative", "head_size": 5, "initial": T5}
    found = deviations(gated=True, tie_embeddings=False, **more)
    d, h, n, f = 24, 5, 3, 40
    for stack, kinds in (("encoder", ["attention"]), ("decoder", ["attention", "cross"])):
        assert found[f"{stack}.relative.weight"] == pytest.approx(d**-0.5)
        for kind in kinds:
            assert found[f"{stack}.{kind}.query.weight"] == pytest.approx((d * h) ** -0.5)
            assert found[f"{stack}.{kind}.key.weight"] == pytest.approx(d**-0.5)
            assert found[f"{stack}.{kind}.value.weight"] == pytest.approx(d**-0.5)
            assert found[f"{stack}.{kind}.output.weight"] == pytest.approx((n * h) ** -0.5)
        for kind, expected in (("up", d**-0.5), ("gate", d**-0.5), ("output", f**-0.5)):
            assert found[f"{stack}.ffn.{kind}.weight"] == pytest.approx(expected)
    assert found["embedding.weight"] == found["head.weight"] == 1.0


def test_deep_norms_gains_are_of_xavier():
    found = deviations(initial=DEEP_NORM, gated=False, num_kv_heads=1)
    gain = 10**-0.5
    assert found["decoder.attention.query.weight"] == pytest.approx(math.sqrt(2 / 48))
    assert found["decoder.attention.key.weight"] == pytest.approx(math.sqrt(2 / 32))
    assert found["decoder.attention.value.weight"] == pytest.approx(gain * math.sqrt(2 / 32))
    assert found["decoder.attention.output.weight"] == pytest.approx(gain * math.sqrt(2 / 48))
    assert found["decoder.ffn.up.weight"] == pytest.approx(gain * math.sqrt(2 / 64))
    assert found["decoder.ffn.output.weight"] == pytest.approx(gain * math.sqrt(2 / 64))


def test_values_are_the_same_draws_times_the_deviation():
    plain, scaled = (
        Transformer(ModelConfig(**SHAPE, **more), Mesh.single())
        for more in ({"init_std": 1.0, "scaled_init": False}, {"initial": DEEP_NORM})
    )
    for model in (plain, scaled):
        initialise(model, 7)
    std = scaled.decoder.layers["2"].ffn.up.initial["weight"].std
    one, other = (model.decoder.layers["2"].ffn.up.weight for model in (plain, scaled))
    assert (one * std == other).all()


def test_a_formula_is_a_number_where_a_model_is_exported():
    assert ModelConfig(**SHAPE, init_std="sqrt(2/5D)").standard_deviation == math.sqrt(2 / 120)
