"""What the plan says of a run by adapters, against the parameters that it holds."""

import pytest

from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import LoRAConfig, quantised_of
from megalite.models.config import ModelConfig
from megalite.plan.constants import constants_of
from megalite.plan.devices import DEVICES, NETWORKS, Cluster
from megalite.plan.job import Job
from megalite.plan.memory import GIB, Work, estimate
from megalite.plan.stages import Stage, frozen_memory, stage_memory
from megalite.plan.step import step_seconds
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from tests.dist import models

LAYOUT = ParallelConfig(shard=8)
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


@pytest.mark.parametrize("form", ["compute", "nf4"])
def test_a_base_that_a_critic_shares_is_counted_once(form: str):
    """Beside the actor stand what the critic learns, its state, and the reward model's adapters."""
    lora = LORA.model_copy(update={"base_format": form})
    done = work("bf16", lora)
    (apart,), (shared,) = (
        stage_memory(Stage("ppo", shares_base=shares), done, ParallelConfig(shard=2))
        for shares in (False, True)
    )
    model = models.config("llama").model_copy(update={"head": "value"})
    options = BuildOptions(lora=lora)
    built = build_model(model, Mesh.single(), ParallelConfig(), seed=1, options=options)
    learned = sum(p.numel() for p in built.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in built.parameters() if not p.requires_grad)
    held = 2 * frozen / 2 + sum(t.nbytes for t in built.parts[0].buffers())
    assert (apart.states - shared.states) * GIB == pytest.approx(held - 2 * learned / 2)
    of_matrices = sum(m.shape.numel() for m in quantised_of(built.parts).values())
    assert apart.parameters - shared.parameters == frozen + of_matrices - learned
    (alone,) = stage_memory(Stage("ppo"), work(lora=LoRAConfig()), ParallelConfig())
    assert (
        stage_memory(Stage("ppo", shares_base=True), work(lora=LoRAConfig()), ParallelConfig())[0]
        == alone
    )


def test_frozen_weights_have_no_gradients_to_make_or_reduce():
    cluster, constants = Cluster(DEVICES["a100-80gb"], NETWORKS["ib-200"]), constants_of("a100")
    train = TrainConfig(global_batch_size=16, precision="bf16")
    whole, adapted = (
        step_seconds(
            Job(Work(ModelConfig(preset="llama-7b"), train, 1024, lora=lora), LAYOUT),
            cluster,
            constants,
        )
        for lora in (LoRAConfig(), LoRAConfig(rank=16))
    )
    assert 0.6 * whole.compute < adapted.compute < 0.85 * whole.compute
    assert adapted.optimizer < 0.02 * whole.optimizer
    assert adapted.dp < whole.dp


@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_a_quantised_base_takes_what_its_codes_and_scales_take(form: str):
    lora = LORA.model_copy(update={"base_format": form})
    options = BuildOptions(lora=lora)
    model = build_model(
        models.config("llama"), Mesh.single(), ParallelConfig(), seed=1, options=options
    )
    (part,) = model.parts
    (plain,), (planned,) = (estimate(work(lora=one), ParallelConfig()) for one in (LORA, lora))
    learned = sum(p.numel() for p in part.parameters() if p.requires_grad)
    held = sum(t.nbytes for t in (*part.parameters(), *part.buffers()))
    assert planned.states * GIB == pytest.approx(held + 8 * learned, rel=1e-3)
    assert planned.parameters == plain.parameters
    stage = Stage("ppo", has_reward=True, frozen=ParallelConfig())
    (frozen,) = frozen_memory(stage, work(lora=lora))
    assert frozen.states < 0.5 * frozen_memory(stage, work())[0].states


def test_llama_7b_in_nf4_is_planned_at_less_than_a_third_of_bf16():
    train = TrainConfig(global_batch_size=1, precision="bf16")
    model, whole = ModelConfig(preset="llama-7b"), ParallelConfig(recompute="full")
    (half,), (four,) = (
        estimate(Work(model, train, 1024, lora=LoRAConfig(rank=16, base_format=form)), whole)
        for form in ("compute", "nf4")
    )
    assert four.states < half.states / 3
