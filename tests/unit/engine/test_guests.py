"""Models on the frozen weights of another: one base in memory, the numbers of two."""

import pytest
import torch

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.guests import Guest, GuestOptions
from megalite.engine.lora import ADAPTER, LoRAConfig, add_product
from megalite.engine.model import Task
from megalite.models.outputs import LogProbs, Loss, Values
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from tests.dist import models

FAMILIES = ["llama", "t5", "chatglm2-tiny"]
LORA = LoRAConfig(rank=3, alpha=6.0)


def shape(name: str, head: str = "lm"):
    return models.config(name).without_dropout().model_copy(update={"head": head})


def build(config, lora=LORA, guests=()):
    options = BuildOptions(lora=lora, guests=guests)
    return build_model(config, Mesh.single(), ParallelConfig(), seed=1, options=options)


def on_one_base(name: str, lora=LORA):
    options = GuestOptions("critic", shape(name, "value"), lora)
    actor = build(shape(name), lora, [options])
    return actor, Guest(actor, options)


def learner(model, name: str, kind: str) -> Learner:
    train = TrainConfig(steps=9, global_batch_size=models.SAMPLES)
    rule = OptimizerConfig(learning_rate=1e-2, kind=kind)
    return Learner(model, model.mesh, Learning(train, rule, ScheduleConfig(), 1), name)


def squares(scale):
    return Task(Values(), lambda values, _: (values.square().mean() * scale, {}))


def taught(actor, critic, name: str, kind: str) -> tuple[list, dict]:
    """Metrics of some steps that both learn in turns, and what their checkpoints hold."""
    told, learners = [], [learner(actor, "actor", kind), learner(critic, "critic", kind)]
    for number in range(2):
        items = [(models.batch(name, number), None)]
        for one, task in zip(learners, (lambda scale: Task(Loss(scale)), squares), strict=True):
            told.append(one.step(items, task, 9, number))
    return told, {**learners[0].tensors(), **learners[1].tensors()}


@pytest.mark.parametrize(
    ("name", "lora", "kind"),
    [
        ("llama", LoRAConfig(rank=3, dora=True), "adamw"),
        ("t5", LORA, "lion"),
        ("chatglm2-tiny", LoRAConfig(rank=2, base_format="nf4"), "adamw"),
    ],
)
def test_two_models_learn_on_one_base_as_on_two(name, lora, kind):
    """Bit for bit, under the same names, and neither changes what the other gives."""
    metrics, saved = taught(*on_one_base(name, lora), name, kind)
    copies = build(shape(name), lora), build(shape(name, "value"), lora)
    wanted, wanted_saved = taught(*copies, name, kind)
    assert metrics == wanted
    assert saved.keys() == wanted_saved.keys()
    assert all(torch.equal(tensor, wanted_saved[n]) for n, tensor in saved.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_base_is_in_memory_once(name):
    actor, critic = on_one_base(name)
    both = [*actor.parameters(), *critic.parameters()]
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in both}
    learned = sum(p.nbytes for one in (actor, critic) for p in one.parameters() if p.requires_grad)
    base = build(shape(name), LoRAConfig())
    assert sum(held.values()) == learned + sum(p.nbytes for p in base.parameters())
    copy = {n for n, _ in build(shape(name, "value")).named_parameters()}
    assert {n for n, _ in critic.named_parameters()} == copy == critic.owned_names()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_critic_starts_as_stays_beside_its_own_adapters(name):
    value, batch = shape(name, "value"), models.batch(name, 0)
    stored = LoRAConfig(rank=2, alpha=5.0, layers=("feed_forward",))
    guests = [GuestOptions("scorer", value, stored, False), GuestOptions("critic", value, LORA)]
    actor = build(shape(name), LORA, guests)
    scorer, critic = Guest(actor, guests[0]), Guest(actor, guests[1], ["scorer"])
    own, merged = dict(scorer.named_parameters()), build(value, LoRAConfig())
    assert not any(p.requires_grad for p in own.values())
    for layer in {n.partition(ADAPTER)[0] for n in own if ADAPTER in n}:
        factors = {f: own[f"{layer}{ADAPTER}{f}"].data for f in ("down", "up")}
        factors["up"].normal_(std=0.1)
        parameter = dict(merged.named_parameters())[f"{layer}.weight"]
        add_product(parameter.data, factors, stored.scale)

    def given():
        values = [one.evaluate([batch], Values())[0] for one in (scorer, critic, merged)]
        return *values, actor.evaluate([batch], LogProbs())[0][0]

    before, start, wanted, said = given()
    assert torch.equal(before, start)
    assert (before - wanted).norm() <= 1e-6 * wanted.norm()
    for parameter_name, parameter in critic.named_parameters():
        if parameter_name.endswith("adapter.up"):
            parameter.data.normal_(std=0.1)
    after, changed, _, said_after = given()
    assert torch.equal(after, before) and torch.equal(said_after, said)
    assert not torch.allclose(changed, before)
    with critic.without_adapters():
        plain = build(value, LoRAConfig()).evaluate([batch], Values())[0]
        assert torch.equal(critic.evaluate([batch], Values())[0], plain)
