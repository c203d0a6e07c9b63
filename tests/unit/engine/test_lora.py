"""Adapters of a model: where it starts, what learns, what merged weights give."""

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import ADAPTER, LoRAConfig, add_product, check_lora
from megalite.engine.model import Task
from megalite.errors import ConfigError
from megalite.models.outputs import Logits, Loss
from megalite.ops.linear import products_by_rows
from tests.dist import models

FAMILIES = ["llama", "t5", "chatglm2-tiny", "glm", "gpt"]


def build(name: str, **lora):
    config = models.config(name).model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    options = BuildOptions(lora=LoRAConfig(**lora))
    return build_model(config, Mesh.single(), ParallelConfig(), seed=1, options=options)


def logits(model, name: str) -> torch.Tensor:
    (found,) = model.evaluate([models.batch(name, 0)], Logits())
    return found


def adapted(name: str, **lora):
    """A model whose adapters do something."""
    model, generator = build(name, **lora), torch.Generator().manual_seed(0)
    for parameter in (p for n, p in model.named_parameters() if n.endswith("adapter.up")):
        parameter.data.normal_(std=0.05, generator=generator)
    return model


def merged(model, name: str):
    """The same without adapters, their products added to its matrices."""
    plain, own = build(name), dict(model.named_parameters())
    scale = model.lora.scale
    for parameter_name, parameter in plain.named_parameters():
        parameter.data.copy_(own[parameter_name].data)
        factors = {f: own.get(f"{parameter_name[:-6]}adapter.{f}") for f in ("down", "up")}
        if factors["up"] is not None:
            add_product(parameter.data, {f: t.data for f, t in factors.items()}, scale)
    return plain


@pytest.mark.parametrize("name", FAMILIES)
def test_it_starts_as_its_base_and_only_adapters_learn(name: str):
    """Also of full rank, which can become whatever full fine-tuning can."""
    base = build(name)
    for rank in (3, models.config(name).hidden_size):
        model = build(name, rank=rank)
        assert torch.equal(logits(model, name), logits(base, name))
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in base.named_parameters()}
    assert learned and all(ADAPTER in name for name in learned)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_merged_weights_give_the_logits_of_the_adapters(name: str, rslora: bool):
    model = adapted(name, rank=5, alpha=7.0, rslora=rslora)
    found, wanted = logits(merged(model, name), name), logits(model, name)
    assert (found - wanted).norm() <= 1e-6 * wanted.norm()
    assert (wanted - logits(build(name), name)).norm() > 1e-3 * wanted.norm()
    with model.without_adapters():
        assert torch.equal(logits(model, name), logits(build(name), name))
    assert torch.equal(logits(model, name), wanted)
    with products_by_rows():
        assert torch.allclose(logits(model, name), wanted, atol=1e-5)


def test_gradients_are_those_of_the_product():
    """dL/dU = scale dL/dW A^T and dL/dA = scale U^T dL/dW, dL/dW of the merged model."""
    model, name = adapted("t5", rank=4, alpha=2.0), "t5"
    plain = merged(model, name)
    for one in (model, plain):
        one.forward_backward([(models.batch(name, 0), None)], Task(Loss(1e-2)))
    of_weights = {n: p.grad.flatten(1) for n, p in plain.named_parameters() if p.dim() > 1}
    own = dict(model.named_parameters())
    for layer in {n.partition(ADAPTER)[0] for n in own if ADAPTER in n}:
        down, up = own[f"{layer}.adapter.down"], own[f"{layer}.adapter.up"]
        gradient = of_weights[f"{layer}.weight"].reshape(up[..., 0].numel(), down[0].numel())
        a, u = down.detach().flatten(1), up.detach().flatten(0, -2)
        for found, wanted in (
            (up.grad.flatten(0, -2), 0.5 * gradient @ a.t()),
            (down.grad.flatten(1), 0.5 * u.t() @ gradient),
        ):
            assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-7, layer


def test_dropout_of_an_adapters_input_is_a_function_of_the_step():
    model, batch = adapted("llama", rank=4, dropout=0.5), models.batch("llama", 0)

    def loss(seed):
        sums = model.forward_backward([(batch, None)], Task(Loss(1e-2)), dropout_seed=seed)
        return float(sums["loss"])

    assert loss(1) == loss(1)
    assert len({loss(None), loss(1), loss(2)}) == 3


def test_chosen_layers_have_adapters_and_others_none():
    model = build("t5", rank=2, layers=("cross.query", "feed_forward"))
    kinds = {".".join(n.split(".")[3:5]) for n, _ in model.named_parameters() if ADAPTER in n}
    assert kinds == {"cross.query", "ffn.up", "ffn.gate", "ffn.output"}


@pytest.mark.parametrize(
    ("lora", "name", "parallel", "said"),
    [
        ({"layers": ("cross",)}, "llama", {}, "--lora.layers cross: this model has no such layer"),
        (
            {"layers": ("feed_forward.gate",)},
            "gpt",
            {},
            "use all, or attention.query, attention.key, attention.value, attention.output, "
            "feed_forward.up, feed_forward.output",
        ),
        ({"layers": ("cross",)}, "t5", {"pp": 2}, "parallel.pp 2 needs some in every stage"),
    ],
)
def test_layers_that_a_model_lacks_are_refused(lora, name, parallel, said):
    with pytest.raises(ConfigError) as refused:
        check_lora(LoRAConfig(rank=4, **lora), models.config(name), ParallelConfig(**parallel))
    assert said in str(refused.value)
    check_lora(LoRAConfig(rank=4), models.config(name), ParallelConfig(**parallel))


def test_options_of_adapters_that_there_are_none_of_are_refused():
    with pytest.raises(ConfigError, match=r"--lora.alpha 8.0: needs lora.rank"):
        LoRAConfig(alpha=8.0)
    with pytest.raises(ConfigError, match=r"--lora.layers attention cross: needs lora.rank"):
        LoRAConfig(layers=("attention", "cross"))
