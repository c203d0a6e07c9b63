"""Adafactor, Lion and Muon element by element against their published formulas, on odd shapes."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.optimization import Adafactor as TheirAdafactor

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import build_model
from megalite.errors import ConfigError
from megalite.training.config import OptimizerConfig
from megalite.training.optimizer import build_optimizer, named_state, step_unless
from megalite.training.updates.adafactor import Adafactor, AdafactorConfig
from megalite.training.updates.footprint import shapes_of, state_numbers
from megalite.training.updates.lion import Lion, LionConfig
from megalite.training.updates.muon import Muon, MuonConfig
from megalite.training.updates.rule import Weight
from megalite.training.updates.whole import share_out
from tests.dist import models

STEPS, RATE, DECAY = 20, 0.013, 0.07
SHAPES = {  # of a parameter, and the leading dimensions that are rows of its matrix
    "wide": ((131, 257), 1),
    "heads": ((3, 45, 139), 2),
    "output": ((149, 5, 31), 1),
    "small": ((5, 7), 1),
    "vector": ((77,), 0),
    "bias of heads": ((3, 45), 0),
}


def weights(names=SHAPES) -> list[Weight]:
    made = []
    for name in names:
        shape, rows = SHAPES[name]
        values = torch.randn(shape) * (0.0 if name == "vector" else 0.3)
        made.append(Weight(f"decoder.layers.0.{name}", nn.Parameter(values), rows))
    return made


def groups(some: list[Weight]) -> list[dict]:
    return [{"params": [weight.parameter for weight in some], "weight_decay": DECAY}]


def gradients(some: list[Weight]) -> list[list[Tensor]]:
    """Of twenty steps; some rows, columns and whole gradients are 0."""
    made = []
    for number in range(STEPS):
        each = [torch.randn(w.parameter.shape) * 10.0 ** (number % 5 - 3) for w in some]
        for gradient in each:
            gradient[number % gradient.shape[0]] = 0.0
        made.append([g * (number != 7) for g in each])
    return made


def train(optimizer, some: list[Weight], steps: list[list[Tensor]], bad=()) -> None:
    for number, each in enumerate(steps):
        for weight, gradient in zip(some, each, strict=True):
            weight.parameter.grad = gradient.clone()
        step_unless(optimizer, torch.tensor(number in bad))


def equal(ours: Tensor, theirs: Tensor) -> None:
    """Up to rounding in fp32 over the steps."""
    theirs = theirs.detach().float().view(ours.shape)
    assert torch.allclose(ours, theirs, rtol=2e-5, atol=2e-6), (ours - theirs).abs().max()


def as_matrix(weight: Weight, values: Tensor) -> Tensor:
    """Rows and columns as the original has them; a vector, or a matrix that it would factor."""
    shape, rows = values.shape, weight.rows
    sides = math.prod(shape[:rows]), math.prod(shape[rows:])
    return values.reshape(sides) if rows and min(sides) >= 128 else values.reshape(-1)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_adafactor_is_that_of_transformers(momentum):
    some = weights()
    steps = gradients(some)
    theirs = [nn.Parameter(as_matrix(w, w.parameter.detach().clone())) for w in some]
    settings = {"scale_parameter": True, "relative_step": False, "weight_decay": 0.0}
    peer = TheirAdafactor(theirs, lr=RATE, beta1=momentum or None, **settings)
    group = [{"params": [w.parameter for w in some], "weight_decay": 0.0}]
    ours = Adafactor(some, group, RATE, AdafactorConfig(momentum=momentum), Mesh.single())
    for number in range(STEPS):
        train(ours, some, steps[number : number + 1])
        for weight, other, gradient in zip(some, theirs, steps[number], strict=True):
            other.grad = as_matrix(weight, gradient)
        peer.step()
        for weight, other in zip(some, theirs, strict=True):
            equal(weight.parameter, other)


def plain_adafactor(
    parameter: Tensor, steps: list[Tensor], rows: int, config: AdafactorConfig
) -> Tensor:
    """Shazeer & Stern 2018, algorithms 4 and 5, with t5x's weight decay, in fp64."""
    sides = math.prod(parameter.shape[:rows]), math.prod(parameter.shape[rows:])
    factored = rows > 0 and 0 < config.factor_from <= min(sides)
    x = parameter.detach().double()
    x = x.reshape(sides) if factored else x.reshape(-1)
    row = column = moment = mean = torch.zeros(())
    for number, gradient in enumerate(steps, 1):
        g = gradient.double().reshape(x.shape)
        beta = 1 - number**-config.decay_power
        squares = g**2 + 1e-30
        if factored:
            row = beta * row + (1 - beta) * squares.mean(1)
            column = beta * column + (1 - beta) * squares.mean(0)
            update = g / (row[:, None] * column / row.mean()).sqrt()
        else:
            moment = beta * moment + (1 - beta) * squares
            update = g / moment.sqrt()
        if config.clip:
            update = update / max(1.0, float(update.square().mean().sqrt()) / config.clip)
        scale = max(config.least_scale, float(x.square().mean().sqrt()))
        update = RATE * update * (scale if config.scale_by_parameter else 1.0)
        if config.momentum:
            mean = config.momentum * mean + (1 - config.momentum) * update
            update = mean
        x = x - DECAY * RATE**config.decay_exponent * x - update
    return x


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"factor_from": 4, "momentum": 0.5, "clip": 0.3},
        {"factor_from": 0, "momentum": 0.9, "clip": 0.0, "decay_exponent": 2.0},
        {"scale_by_parameter": False, "decay_power": 0.6},
    ],
    ids=["t5", "factored more", "palm", "unscaled"],
)
def test_adafactor_is_the_papers(numbers):
    config, some = AdafactorConfig(**numbers), weights()
    steps = gradients(some)
    wanted = [
        plain_adafactor(w.parameter, [each[n] for each in steps], w.rows, config)
        for n, w in enumerate(some)
    ]
    train(Adafactor(some, groups(some), RATE, config, Mesh.single()), some, steps)
    for weight, value in zip(some, wanted, strict=True):
        equal(weight.parameter, value)


def test_lion_is_the_papers():
    config, some = LionConfig(), weights()
    steps, wanted = gradients(some), [w.parameter.detach().double() for w in some]
    means = [torch.zeros_like(value) for value in wanted]
    for each in steps:
        for n, gradient in enumerate(each):
            g = gradient.double()
            update = torch.sign(config.beta1 * means[n] + (1 - config.beta1) * g)
            wanted[n] = wanted[n] - RATE * (update + DECAY * wanted[n])
            means[n] = config.beta2 * means[n] + (1 - config.beta2) * g
    train(Lion(groups(some), RATE, config), some, steps)
    for weight, value in zip(some, wanted, strict=True):
        equal(weight.parameter, value)


def newton_schulz(g: Tensor) -> Tensor:
    """Jordan 2024: five quintic steps from the matrix over its Frobenius norm."""
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", ["original", "rms"])
def test_muon_is_the_published_one(scale, nesterov):
    config = MuonConfig(scale=scale, nesterov=nesterov, products="fp32")
    some = weights(["wide", "heads", "output", "small"])
    steps = gradients(some)
    wanted = [w.parameter.detach().double().flatten(0, w.rows - 1).flatten(1) for w in some]
    means = [torch.zeros_like(value) for value in wanted]
    for each in steps:
        for n, (value, gradient) in enumerate(zip(wanted, each, strict=True)):
            g, (rows, columns) = gradient.double().reshape(value.shape), value.shape
            means[n] = config.momentum * means[n] + (1 - config.momentum) * g
            mixed = config.momentum * means[n] + (1 - config.momentum) * g
            size = max(1, rows / columns) ** 0.5
            if scale == "rms":
                size = 0.2 * max(rows, columns) ** 0.5
            update = size * newton_schulz(mixed if nesterov else means[n])
            wanted[n] = value * (1 - RATE * DECAY) - RATE * update
    settings = {"lr": RATE, "weight_decay": DECAY}
    train(Muon(some, None, settings, config, Mesh.single().world), some, steps)
    for weight, value in zip(some, wanted, strict=True):
        ours = weight.parameter.detach()
        equal(ours, value.reshape(ours.shape))


KINDS = {
    "adafactor": {"kind": "adafactor", "adafactor": {"factor_from": 4, "momentum": 0.5}},
    "lion": {"kind": "lion"},
    "muon": {"kind": "muon"},
}


def learning(kind: str):
    """A tiny model and its optimizer."""
    model = build_model(models.config("llama"), Mesh.single(), ParallelConfig(), seed=1)
    return model, build_optimizer(model, OptimizerConfig(**KINDS[kind]))


def give_gradients(model, number: int) -> None:
    """Random ones, the same in every call with a number; a whole gradient is 0."""
    generator = torch.Generator().manual_seed(number)
    for place, parameter in enumerate(model.parameters()):
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient * (place != number)


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_step_changes_no_bit(kind):
    """The first one too; what comes after is as if it had not been."""
    (model, ours), (other, disturbed) = learning(kind), learning(kind)
    for number, value in enumerate((math.nan, math.inf, math.nan)):
        before = {name: t.clone() for name, t in named_state(other, disturbed).items()}
        for parameter in other.parameters():
            parameter.grad = torch.full_like(parameter, value)
        step_unless(disturbed, torch.tensor(True))
        after = named_state(other, disturbed)
        assert all(torch.equal(before[name], after[name]) for name in before)
        for one, optimizer in ((model, ours), (other, disturbed)):
            give_gradients(one, number)
            step_unless(optimizer, torch.tensor(False))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and torch.isfinite(a).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_of_the_state_is_there_before_the_first_step(kind):
    model, optimizer = learning(kind)
    before = {name: (t.shape, t.data_ptr()) for name, t in named_state(model, optimizer).items()}
    give_gradients(model, 0)
    step_unless(optimizer, torch.tensor(False))
    after = {name: (t.shape, t.data_ptr()) for name, t in named_state(model, optimizer).items()}
    assert before == after
    assert {name.rpartition(".")[0] for name in after} == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("kind", KINDS)
def test_the_planner_counts_the_state(kind):
    """But for counts of steps, a number each."""
    config = OptimizerConfig(**KINDS[kind])
    model, optimizer = learning(kind)
    held = sum(t.numel() for t in named_state(model, optimizer).values() if t.dim())
    counted = sum(
        count * sum(state_numbers(shape, config))
        for shape, count in shapes_of(model.parts[0]).items()
    )
    assert held == counted


def test_muon_updates_matrices_of_blocks_and_adamw_the_rest():
    model, optimizer = learning("muon")
    keys: dict[str, set[str]] = {}
    for name in named_state(model, optimizer):
        keys.setdefault(name.rpartition(".")[2], set()).add(name.rpartition(".")[0])
    matrices = {
        name
        for name, parameter in model.named_parameters()
        if ".layers." in name and parameter.dim() > 1
    }
    assert keys["momentum_buffer"] == matrices
    assert keys["exp_avg"] == dict(model.named_parameters()).keys() - matrices
    assert {"embedding.weight", "head.weight", "decoder.norm.weight"} <= keys["exp_avg"]


@pytest.mark.parametrize("kind", ["adafactor", "muon"])
def test_a_parameter_that_nobody_declared_is_refused_by_name(kind):
    model = build_model(models.config("llama"), Mesh.single(), ParallelConfig(), seed=1)
    model.parts[0].blocks()[1].register_parameter("experts", nn.Parameter(torch.zeros(2, 3, 5)))
    said = rf"--optimizer.kind {kind}: has no rule for decoder.layers.1.experts \[2, 3, 5\]"
    with pytest.raises(ConfigError, match=said):
        build_optimizer(model, OptimizerConfig(kind=kind))
    build_optimizer(model, OptimizerConfig(kind="lion"))


def test_work_is_shared_out_evenly():
    costs = [5.0, 1.0, 4.0, 4.0, 3.0, 1.0]
    owners = share_out(costs, 3)
    loads = [sum(c for c, o in zip(costs, owners, strict=True) if o == n) for n in range(3)]
    assert max(loads) <= 4 / 3 * sum(costs) / 3  # Graham 1969
    assert share_out(costs, 1) == [0] * 6
