"""Adapters of a model: where it starts, what learns, what merged weights give."""

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import (
    ADAPTER,
    LoRAConfig,
    add_product,
    check_lora,
    is_linear,
    quantised_of,
    round_base,
)
from megalite.engine.model import Task
from megalite.errors import ConfigError
from megalite.layers.adapter import AdapterOptions
from megalite.layers.layer import Initial
from megalite.layers.linear import ColumnParallelLinear
from megalite.layers.shards import Share
from megalite.models.config import ModelConfig
from megalite.models.outputs import Logits, Loss
from megalite.ops.linear import products_by_rows
from megalite.ops.quantised import dequantised, quantised
from megalite.training.config import OptimizerConfig
from megalite.training.optimizer import build_optimizer
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
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("adapter.up", "adapter.change")):
            parameter.data.normal_(std=0.05, generator=generator)
    return model


def merged(model, name: str):
    """The same without adapters, their products added to its matrices."""
    plain, own = build(name), dict(model.named_parameters())
    scale = model.lora.scale
    for parameter_name, parameter in plain.named_parameters():
        parameter.data.copy_(own[parameter_name].data)
        names = {f: f"{parameter_name[:-6]}adapter.{f}" for f in ("down", "up", "change")}
        factors = {f: own[name].data for f, name in names.items() if name in own}
        if factors:
            add_product(parameter.data, factors, scale)
    return plain


@pytest.mark.parametrize("name", FAMILIES)
def test_it_starts_as_its_base_and_only_adapters_learn(name: str):
    """Also of full rank, which can become whatever full fine-tuning can."""
    base = build(name)
    for rank in (3, models.config(name).hidden_size):
        model = build(name, rank=rank)
        assert torch.equal(logits(model, name), logits(base, name))
    dora = logits(build(name, rank=3, dora=True), name)
    assert torch.allclose(dora, logits(base, name), rtol=1e-6, atol=1e-6)
    learned = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in base.named_parameters()}
    assert learned and all(ADAPTER in name for name in learned)


@pytest.mark.parametrize("kind", ["plain", "rslora", "dora"])
@pytest.mark.parametrize("name", FAMILIES)
def test_merged_weights_give_the_logits_of_the_adapters(name: str, kind: str):
    model = adapted(name, rank=5, alpha=7.0, rslora=kind == "rslora", dora=kind == "dora")
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


@pytest.mark.parametrize("form", ["compute", "nf4"])
def test_dora_is_what_its_definition_says(form: str):
    """m V / |V| by rows, of which |V| has no gradient; it starts as the base, to the bit."""
    layer = ColumnParallelLinear(Mesh.single(), (4, 6), 40, Initial(1.0), bias=True)
    weight, bias = torch.randn(24, 40), torch.randn(24)
    layer.weight.data.copy_(weight.view(4, 6, 40))
    layer.bias.data.copy_(bias.view(4, 6))
    layer.adapt("some.layer", AdapterOptions(rank=3, scale=0.7, dora=True))
    if form == "nf4":
        layer.quantise("nf4")
        whole = weight.view(4, 6, 40)
        layer.quantised.hold(Share(whole, whole.shape, (0, 0, 0)))
        weight = dequantised(quantised(weight, "nf4"), torch.float32)
    adapter, x = layer.adapter, torch.randn(2, 5, 40)
    for factor in (adapter.up, adapter.change):
        factor.data.zero_()
    adapter.down.data.normal_()
    assert torch.equal(layer(x).flatten(2), x @ weight.t() + bias)
    adapter.up.data.normal_()
    adapter.change.data.normal_(std=0.1)
    down, up = adapter.down.detach().clone(), adapter.up.detach().flatten(0, 1)
    change = adapter.change.detach().flatten()
    m = weight.norm(dim=1) * (1 + change)
    own = [t.clone().requires_grad_() for t in (down, up, m)]
    v = weight + 0.7 * own[1] @ own[0]
    wanted = x @ (own[2][:, None] * v / v.norm(dim=1, keepdim=True).detach()).t() + bias
    found = layer(x).flatten(2)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    upstream = torch.randn_like(wanted)
    mine = torch.autograd.grad(found, (adapter.down, adapter.up, adapter.change), upstream)
    theirs = torch.autograd.grad(wanted, own, upstream)
    mine_m = mine[2].flatten() / weight.norm(dim=1)
    for one, other in zip((mine[0], mine[1].flatten(0, 1), mine_m), theirs, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


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


@pytest.mark.parametrize("form", ["nf4", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantised_base_computes_with_the_values_that_it_stands_for(name: str, form: str):
    """All matrices of linear layers are quantised, also those without adapters; in rows too."""
    model = adapted(name, rank=5, base_format=form, layers=("attention",))
    plain, rounded = adapted(name, rank=5, layers=("attention",)), build(name)
    own = dict(plain.named_parameters())
    matrices = {n: p.detach() for n, p in rounded.named_parameters() if is_linear(n)}
    before = {name: matrix.clone() for name, matrix in matrices.items()}
    round_base(matrices, form)
    for parameter_name, matrix in matrices.items():
        worst = (matrix - before[parameter_name]).abs().max()
        assert 0 < worst <= (0.16 if form == "nf4" else 0.004) * matrix.abs().max()
        own[parameter_name].data.copy_(matrix)
    assert set(quantised_of(model.parts)) == set(matrices)
    with products_by_rows():
        assert torch.allclose(logits(model, name), logits(plain, name), atol=1e-5)
    for one in (model, plain):
        one.forward_backward([(models.batch(name, 0), None)], Task(Loss(1e-2)))
    found, wanted = (
        {n: p.grad for n, p in one.named_parameters() if p.requires_grad} for one in (model, plain)
    )
    assert found.keys() == wanted.keys()
    for parameter_name, gradient in wanted.items():
        difference = (found[parameter_name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-9, parameter_name


@pytest.mark.parametrize("kind", ["lion", "adafactor", "muon"])
def test_update_rules_take_adapters_alone(kind: str):
    """All of them may be matrices of blocks, of which muon leaves nothing to AdamW."""
    model = build("llama", rank=2, layers=("attention.query",))
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = build_optimizer(model, OptimizerConfig(kind=kind, learning_rate=0.1))
    model.forward_backward([(models.batch("llama", 0), None)], Task(Loss(1e-2)))
    optimizer.step()
    named = zip(model.named_parameters(), before, strict=True)
    moved = {name for (name, p), was in named if not torch.equal(p, was)}
    learned = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name in learned if name.endswith("up")} <= moved <= learned


def test_tp_that_cuts_a_block_is_refused():
    lora, model = LoRAConfig(rank=4, base_format="nf4"), models.config("llama")
    with pytest.raises(ConfigError) as refused:
        check_lora(lora, model, ParallelConfig(tp=2))
    assert "parallel.tp 2 cuts attention.output after 12 of its 24 inputs" in str(refused.value)
    assert "--lora.base_format nf4: 64 inputs" in str(refused.value)
    check_lora(lora, model, ParallelConfig(pp=2))
    check_lora(lora, ModelConfig(preset="llama-7b"), ParallelConfig(tp=4))
