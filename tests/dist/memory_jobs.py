"""Jobs that weigh what FSDP2 holds beyond its shards while a step runs."""

import gc
import time
import weakref
from typing import Any

from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

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
from tests.memory import most_bytes

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
    return before + min(most_bytes(step) for _ in range(TRIALS))


class Living(TorchDispatchMode):
    """Counts the bytes of what operators make inside, as long as anything holds it.

    Attributes:
        bytes: of what lives now.
        most: of what lived at once.
    """

    def __init__(self, known: list[Tensor]) -> None:
        """Leave the memory of some tensors out."""
        super().__init__()
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._living: dict[int, Any] = {}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if type(tensor) is not Tensor:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known and key not in self._living:
                self.bytes += storage.nbytes()
                self._living[key] = weakref.finalize(storage, self._end, key, storage.nbytes())
        self.most = max(self.most, self.bytes)
        return made

    def _end(self, key: int, size: int) -> None:
        del self._living[key]
        self.bytes -= size


SETTLES_S = 0.1  # until gloo's threads have let go of what a collective read or wrote


def activations(
    launch: Launch, layouts: list[dict[str, Any]], shapes: list[dict[str, Any]], length: int
) -> list[tuple[int, int]]:
    """Of a micro-batch in each layout and model: bytes from forward to backward, and the most."""
    found = []
    for layout, shape in zip(layouts, shapes, strict=True):
        config, parallel = ModelConfig(**shape), ParallelConfig(**layout)
        mesh = build_mesh(launch, parallel, "cpu")
        (part,) = build_model(config, mesh, parallel, seed=1, precision="fp32").parts
        with Living([local_part(parameter) for parameter in part.parameters()]) as living:
            loss = part(batch_of(config, 2, length), Loss(1.0))
            time.sleep(SETTLES_S)
            kept = living.bytes
            loss.backward()
        found.append((kept, living.most))
    return found
