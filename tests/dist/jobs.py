"""What the processes run; each job gives plain numbers and tensors back."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.model import Task
from megalite.models.deviation import InitialConfig
from megalite.models.outputs import Loss
from megalite.training.checkpoint.load import load
from megalite.training.checkpoint.manager import CheckpointManager
from megalite.training.checkpoint.manifest import verify
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.drift import Drift
from megalite.training.learner import Learner, Learning
from tests.dist import models

ALONE, SINGLE = Launch(), Mesh.single()


# What published recipes ask for, as far as numbers of the model and of the step go.
RECIPE_MODEL = {
    "init_std": "sqrt(2/5D)",
    "initial": InitialConfig(embedding=0.3, query="xavier", value="(2L)^-0.5 xavier"),
    "dropout": 0.3,
    "dropout_by_layer": "rising",
    "embedding_dropout": 0.05,
}
RECIPE_TRAIN = {
    "max_grad_norm": {"0": 1.0, "8 samples": 0.3},
    "embedding_gradient": {"0": 0.1, "to 24 samples": 1.0},
    "dropout_until": "16 samples",
}
RECIPE_LOSS = {"z_loss": 1e-2, "max_z_loss": 1e-2, "label_smoothing": 0.1}


def mesh_of(where: Launch | Mesh, layout: dict[str, Any]) -> Mesh:
    """The mesh of a layout; a process without a group is alone. A mesh is that of its layout."""
    if isinstance(where, Mesh):
        return where
    return build_mesh(where, ParallelConfig(**layout), "cpu") if dist.is_initialized() else SINGLE


def of_each(
    launch: Launch, job: str, layout: dict[str, Any], cases: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """What a job of this file gives in each of several cases, on one mesh."""
    mesh = mesh_of(launch, layout)
    return {name: globals()[job](mesh, layout=layout, **case) for name, case in cases.items()}


def make_learner(
    where: Launch | Mesh,
    model: str,
    layout: dict[str, Any],
    precision: str = "fp32",
    optimizer: dict[str, Any] | None = None,
    recipe: bool = False,
) -> Learner:
    """A learner in a layout, on its mesh or on a new one of a launch."""
    mesh, parallel = mesh_of(where, layout), ParallelConfig(**layout)
    config = models.config(model).model_copy(update=RECIPE_MODEL if recipe else {})
    built = build_model(config, mesh, parallel, seed=1, precision=precision)
    more = RECIPE_TRAIN if recipe else {}
    train = TrainConfig(steps=20, global_batch_size=models.SAMPLES, precision=precision, **more)
    settings = OptimizerConfig(**({"learning_rate": 3e-3} | (optimizer or {})))
    return Learner(built, mesh, Learning(train, settings, ScheduleConfig(), 1))


def step(learner: Learner, model: str, number: int, **loss: float) -> dict[str, float]:
    """One optimizer step on this rank's share of the step's batch, as two or more micro-batches."""
    mesh, whole = learner.mesh, models.batch(model, number)
    share = models.SAMPLES // mesh.dp.size
    size = 1 if mesh.pp.size > 1 else max(share // 2, 1)
    first = mesh.dp.rank * share
    items = [
        (whole.select(torch.arange(at, at + size)), None)
        for at in range(first, first + share, size)
    ]
    count = sum(batch.num_targets for batch, _ in items)
    consumed = number * models.SAMPLES
    return learner.step(items, lambda scale: Task(Loss(scale, **loss)), count, consumed)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, wherever its pieces are. Comm: all-gather."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


class GradientsOfFirstStep:
    """Keeps whole gradients as the optimizer sees them."""

    def __init__(self, learner: Learner) -> None:
        self.kept: dict[str, Tensor] = {}
        inner = learner.optimizer.step

        def keep_and_step() -> None:
            if not self.kept:
                named = learner.model.named_parameters()
                self.kept = {n: whole(p.grad) for n, p in named if p.grad is not None}
            inner()

        learner.optimizer.step = keep_and_step


def train(
    where: Launch | Mesh, model: str, layout: dict[str, Any], steps: int, recipe: bool = False
) -> tuple:
    """Losses and gradient norms of each step, and the first step's gradients, by name."""
    learner = make_learner(where, model, layout, recipe=recipe)
    gradients, loss = GradientsOfFirstStep(learner), RECIPE_LOSS if recipe else {}
    metrics = [step(learner, model, number, **loss) for number in range(steps)]
    return [m["loss"] for m in metrics], [m["grad_norm"] for m in metrics], gradients.kept


def train_in_fp16(where: Launch | Mesh, model: str, layout: dict[str, Any], steps: int) -> tuple:
    """Losses and loss scales of each step, from a scale that overflows, and bubbles."""
    learner = make_learner(where, model, layout, "fp16")
    learner.scale.value = 2.0**26
    metrics = [step(learner, model, number) for number in range(steps)]
    bubbles = [(m["bubble"], m["bubble_theory"]) for m in metrics if "bubble" in m]
    return [m["loss"] for m in metrics], [m["loss_scale"] for m in metrics], bubbles


def train_and_save(where, model: str, layout, steps: int, folder: str, further: int, **optimizer):
    """Train, save, go on; the further losses."""
    learner = make_learner(where, model, layout, optimizer=optimizer)
    for number in range(steps):
        step(learner, model, number)
    manager = CheckpointManager(Path(folder), keep=2, asynchronous=False, say=print)
    facts = {"step": steps, "learner": learner.facts()}
    manager.save(steps, learner.tensors(), facts)
    manager.wait()
    return [step(learner, model, number)["loss"] for number in range(steps, steps + further)]


def load_and_train(where, model: str, layout, steps: int, folder: str, further: int, **optimizer):
    """Load what another layout saved, and go on; the further losses."""
    learner = make_learner(where, model, layout, optimizer=optimizer)
    path = Path(folder) / f"step-{steps:08d}"
    facts = verify(path)
    load(path, learner.tensors())
    learner.restore(facts["learner"])
    return [step(learner, model, number)["loss"] for number in range(steps, steps + further)]


def train_with_rules(
    launch: Launch, model: str, layout: dict[str, Any], steps: int, rules: dict[str, dict]
) -> dict[str, tuple]:
    """Losses of each step and all parameters at the end, of each of some optimizers."""
    found, mesh = {}, mesh_of(launch, layout)
    for name, optimizer in rules.items():
        learner = make_learner(mesh, model, layout, optimizer=optimizer)
        losses = [step(learner, model, number)["loss"] for number in range(steps)]
        learner.model.reshard()
        drift = Drift([learner], "stop")
        drift.check(steps, print)
        weights = {n: whole(p) for n, p in learner.model.named_parameters()}
        found[name] = losses, weights
    return found
