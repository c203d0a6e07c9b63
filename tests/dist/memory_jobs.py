"""Jobs that weigh what FSDP2 holds beyond its shards while a step runs."""

import gc
import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.profiler import ProfilerActivity, profile

from benchmarks.workload import batch_of
from megalite.distributed.launch import Launch
from megalite.distributed.mesh import ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.model import Task
from megalite.layers.shards import local_part
from megalite.models.config import ModelConfig
from megalite.models.outputs import Loss
from megalite.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from megalite.training.learner import Learner, Learning
from tests.dist import jobs

TRIALS = 4  # steps that are counted


def _weigh(tensors: list[Tensor | None]) -> int:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t is not None}
    return sum(storage.size() for storage in storages.values())


def gathered(launch: Launch, model: str, layout: dict[str, Any], precision: str) -> int:
    """The most bytes of whole parameters and gradients at any block of a second step."""
    learner = jobs.make_learner(launch, model, layout, precision)
    groups = [
        module._get_fsdp_state()._fsdp_param_group
        for module in learner.model.parts[0].modules()
        if isinstance(module, FSDPModule)
    ]
    held = [parameter for group in groups for parameter in group.fsdp_params]
    most = 0

    def weigh(*_: Any) -> None:
        nonlocal most
        whole = [tensor for p in held for tensor in p.all_gather_outputs]
        grown = [p._unsharded_param for p in held if hasattr(p, "_unsharded_param")]
        grown = [p.grad for p in grown] + [p.unsharded_accumulated_grad for p in held]
        most = max(most, _weigh(whole) + _weigh(grown))

    jobs.step(learner, model, 0)
    for block in learner.model.parts[0].blocks():
        block.register_forward_hook(weigh)
        block.register_full_backward_hook(weigh)
    jobs.step(learner, model, 1)
    return most


def peak(launch: Launch, layout: dict[str, Any], sizes: dict[str, Any]) -> int:
    """The most bytes of tensors at once in a later step, as PyTorch's own profiler counts them.

    What lives before the step is weighed: parameters and averages. The profiler misses what is
    freed on a thread of the backend's, now and then, which only adds: the least of a few steps.
    """
    config = ModelConfig(**sizes["model"])
    parallel = ParallelConfig(**layout)
    mesh = build_mesh(launch, parallel, "cpu")
    built = build_model(config, mesh, parallel, seed=1, precision=sizes["precision"])
    train = TrainConfig(steps=9, precision=sizes["precision"], **sizes["train"])
    learner = Learner(built, mesh, Learning(train, OptimizerConfig(), ScheduleConfig(), 1))
    own, size = train.global_batch_size // mesh.dp.size, train.micro_batch_size
    items = [(batch_of(config, size, sizes["length"], at), None) for at in range(0, own, size)]
    count = sum(batch.num_targets for batch, _ in items)

    def step() -> None:
        learner.step(items, lambda scale: Task(Loss(scale)), count, 0)

    step()
    gc.collect()
    before = _weigh([local_part(tensor) for tensor in learner.tensors().values()])
    return before + min(max(_grown(step)) for _ in range(TRIALS))


def _grown(step: Callable[[], None]) -> list[int]:
    """The bytes of tensors after each allocation and release of a step, from 0 at its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    return list(itertools.accumulate(size for _, size in sorted(changes, key=lambda one: one[0])))
