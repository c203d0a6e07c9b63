"""What the plan says of a run by adapters, against the parameters that it holds."""

import pytest

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import LoRAConfig
from megalite.plan.memory import GIB, Work, estimate
from megalite.plan.stages import Stage, frozen_memory, stage_memory
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from tests.dist import models

LORA = LoRAConfig(rank=4, layers=("attention", "feed_forward.up"))


def work(precision: str = "fp32", lora: LoRAConfig = LORA) -> Work:
    train = TrainConfig(global_batch_size=models.SAMPLES, precision=precision)
    return Work(models.config("llama"), train, models.LENGTH, lora=lora)


def test_states_and_gradients_are_those_of_adapters_and_the_base():
    model = build_model(
        models.config("llama"),
        Mesh.single(),
        ParallelConfig(),
        seed=1,
        options=BuildOptions(lora=LORA),
    )
    train = work().train
    learner = Learner(model, Mesh.single(), Learning(train, OptimizerConfig(), ScheduleConfig(), 1))
    parameters = list(model.parameters())
    state = sum(
        t.nbytes
        for name, t in learner.tensors().items()
        if "_optimizer." in name and not name.endswith(".step")
    )
    learned = sum(p.nbytes for p in parameters if p.requires_grad)
    (planned,) = estimate(work(), ParallelConfig())
    assert planned.states * GIB == pytest.approx(sum(p.nbytes for p in parameters) + state)
    assert planned.gradients * GIB == pytest.approx(learned)
    (half,) = estimate(work("bf16"), ParallelConfig())
    frozen = sum(p.nbytes for p in parameters if not p.requires_grad)
    assert (planned.states - half.states) * GIB == pytest.approx(frozen / 2)
    assert half.gathered * GIB == pytest.approx(learned / 2)


@pytest.mark.parametrize("stage", [Stage("dpo", has_reference=True), Stage("ppo")])
def test_a_reference_takes_nothing_beside_adapters(stage: Stage):
    alone = Stage(stage.name, frozen=ParallelConfig() if stage.name == "ppo" else None)
    for lora, adds in ((LORA, False), (LoRAConfig(), True)):
        (with_reference,) = stage_memory(stage, work(lora=lora), ParallelConfig())
        (without,) = stage_memory(alone, work(lora=lora), ParallelConfig())
        assert (with_reference.states > without.states) == adds
    plain = frozen_memory(alone, work(lora=LoRAConfig()))
    assert frozen_memory(alone, work()) == plain
