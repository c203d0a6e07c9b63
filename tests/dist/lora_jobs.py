"""Learning by adapters on tiny models of several families, as a job of some processes."""

from typing import Any

from torch.distributed.tensor import DTensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.build import BuildOptions, build_model
from megalite.engine.lora import LoRAConfig
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from tests.dist import models
from tests.dist.jobs import GradientsOfFirstStep, mesh_of, step

FAMILIES = {
    "llama": LoRAConfig(rank=3, alpha=6.0, dropout=0.1),
    "t5": LoRAConfig(
        rank=3, dropout=0.1, dora=True, layers=("cross", "attention.query", "feed_forward")
    ),
    "chatglm2-tiny": LoRAConfig(rank=5, rslora=True, dora=True),
}


# Of sizes whose halves are whole blocks of a quantised matrix.
WIDE = {"hidden_size": 128, "num_heads": 2, "head_size": 64, "ffn_size": 256}
FLAT = {**WIDE, "num_layers": 2, "dropout": 0.0, "attention_dropout": 0.0}
QUANTISED = {
    "llama": LoRAConfig(rank=3, base_format="nf4", layers=("attention",)),
    "t5": LoRAConfig(rank=3, base_format="int8", dora=True, dropout=0.1),
}


def train_quantised(launch: Launch, layout: dict[str, Any], steps: int) -> dict[str, tuple]:
    """The same as :func:`train` on bases that are held in 4 or 8 bits."""
    mesh = mesh_of(launch, layout)
    return {f: _train(mesh, f, layout, steps, lora, WIDE) for f, lora in QUANTISED.items()}


def train(launch: Launch, layout: dict[str, Any], steps: int) -> dict[str, tuple]:
    """Of each family losses and gradient norms of the steps, and the first step's gradients."""
    mesh = mesh_of(launch, layout)
    return {f: _train(mesh, f, layout, steps, lora, {}) for f, lora in FAMILIES.items()}


def adapted_learner(
    where: Launch | Mesh,
    family: str,
    layout: dict[str, Any],
    lora: LoRAConfig,
    precision: str = "fp32",
    sizes: dict[str, int] | None = None,
) -> Learner:
    mesh, parallel = mesh_of(where, layout), ParallelConfig(**layout)
    more = {"precision": precision, "options": BuildOptions(lora=lora)}
    config = models.config(family).model_copy(update=sizes or {})
    model = build_model(config, mesh, parallel, seed=1, **more)
    settings = TrainConfig(steps=20, global_batch_size=models.SAMPLES, precision=precision)
    rate = OptimizerConfig(learning_rate=3e-3)
    return Learner(model, mesh, Learning(settings, rate, ScheduleConfig(), 1))


def first_losses(launch: Launch, layout: dict[str, Any], precision: str) -> tuple:
    """Of a base and of it with adapters, before they have learned; and how weights are held."""
    mesh = mesh_of(launch, layout)
    base = adapted_learner(mesh, "llama", layout, LoRAConfig(), precision)
    adapted = adapted_learner(mesh, "llama", layout, LoRAConfig(rank=3), precision)
    held = {(str(p.dtype), p.requires_grad) for p in adapted.model.parameters()}
    cut = any(isinstance(p, DTensor) for p in adapted.model.parameters() if not p.requires_grad)
    return [step(one, "llama", 0)["loss"] for one in (base, adapted)], held, cut


def _train(
    mesh: Mesh,
    family: str,
    layout: dict[str, Any],
    steps: int,
    lora: LoRAConfig,
    sizes: dict[str, int],
) -> tuple:
    learner = adapted_learner(mesh, family, layout, lora, "fp32", sizes)
    gradients = GradientsOfFirstStep(learner)
    metrics = [step(learner, family, number) for number in range(steps)]
    return [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics], gradients.kept
