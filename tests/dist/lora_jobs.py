"""Learning by adapters on tiny models of several families, as a job of some processes."""

from typing import Any

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import LoRAConfig
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from tests.dist import models
from tests.dist.jobs import GradientsOfFirstStep, step

FAMILIES = {
    "llama": LoRAConfig(rank=3, alpha=6.0, dropout=0.1),
    "t5": LoRAConfig(rank=3, dropout=0.1, layers=("cross", "attention.query", "feed_forward")),
    "chatglm2-tiny": LoRAConfig(rank=5, rslora=True),
}


def train(launch: Launch, layout: dict[str, Any], steps: int) -> dict[str, tuple]:
    """Of each family losses and gradient norms of the steps, and the first step's gradients."""
    return {family: _train(launch, family, layout, steps) for family in FAMILIES}


def _train(launch: Launch, family: str, layout: dict[str, Any], steps: int) -> tuple:
    parallel, lora = ParallelConfig(**layout), FAMILIES[family]
    mesh = Mesh.single() if launch.world_size == 1 else build_mesh(launch, parallel, "cpu")
    options = BuildOptions(lora=lora)
    model = build_model(models.config(family), mesh, parallel, seed=1, options=options)
    settings = TrainConfig(steps=20, global_batch_size=models.SAMPLES)
    rate = OptimizerConfig(learning_rate=3e-3)
    learner = Learner(model, mesh, Learning(settings, rate, ScheduleConfig(), 1))
    gradients = GradientsOfFirstStep(learner)
    metrics = [step(learner, family, number) for number in range(steps)]
    return [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics], gradients.kept
