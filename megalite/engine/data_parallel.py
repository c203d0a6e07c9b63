"""Data parallelism: FSDP2 over the mesh's replicate and shard axes, gradients summed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from megalite.distributed.mesh import Mesh
from megalite.models.transformer import Transformer

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DataParallel:
    """How parameters are sharded.

    Attributes:
        precision: of compute; parameters, gradients and their reduction stay fp32.
        reshard_after_forward: drop gathered parameters between forward and backward.
        reduces_each: reduce gradients after each micro-batch instead of a step's last.
    """

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    reshard_after_forward: bool = False
    reduces_each: bool = False


def shard_model(part: Transformer, mesh: Mesh, how: DataParallel) -> None:
    """Shard the parameters of a part over dp, a group for each block and one for the rest.

    A process alone in fp32 keeps plain parameters, and so do all where nothing is cut over shard
    of what is frozen: held as it is computed with, it needs no gathering. Gradients are summed over
    dp, not averaged: the loss is already divided by the global number of targets.

    Comm: all-gather of each group's parameters forward (and backward), reduce-scatter of their
    fp32 gradients over shard, all-reduce over replicate.
    """
    if mesh.dp.size == 1 and how.precision == "fp32":
        return
    assert mesh.device_mesh is not None
    dtype = COMPUTE_DTYPES[how.precision]
    options: dict[str, Any] = {
        "mesh": mesh.device_mesh["replicate", "shard"],
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=None if how.precision == "fp32" else dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        ),
        "shard_placement_fn": _placement(mesh.shard.size),
    }
    if mesh.shard.size == 1:
        options["ignored_params"] = {p for p in part.parameters() if not p.requires_grad}
    for block in part.blocks():
        fully_shard(block, reshard_after_forward=how.reshard_after_forward, **options)
    fully_shard(part, reshard_after_forward=False, **options)
    for module in part.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            if mesh.device.type == "cpu":
                module.set_force_sum_reduction_for_comms(True)


def _placement(num_shards: int) -> Callable[[nn.Parameter], Shard | None]:
    """Choose the dimension FSDP2 splits: one that tp has not split already, where there is one."""

    def place(parameter: nn.Parameter) -> Shard | None:
        taken = {
            placement.dim
            for placement in (parameter.placements if isinstance(parameter, DTensor) else ())
            if isinstance(placement, Shard)
        }
        if 0 not in taken:
            return None
        for dim in range(1, parameter.dim()):
            if dim not in taken and parameter.shape[dim] % num_shards == 0:
                return Shard(dim)
        return None

    return place


def set_gradient_sync(part: Transformer, how: DataParallel, is_last: bool) -> None:
    """Reduce gradients in the backward pass of a step's last micro-batch only, or of each.

    Where parameters stay gathered from forward to backward they stay for the whole step.
    """
    if isinstance(part, FSDPModule):
        part.set_requires_gradient_sync(is_last or how.reduces_each)
        part.set_is_last_backward(is_last)
        part.set_reshard_after_backward(is_last or how.reshard_after_forward)


def _sharded_modules(parts: Sequence[Transformer]) -> list[FSDPModule]:
    return [m for part in parts for m in part.modules() if isinstance(m, FSDPModule)]


def reshard(parts: Sequence[Transformer]) -> None:
    """Drop gathered parameters.

    A forward pass without a backward pass leaves them in the modules, in place of the pieces that
    the optimizer and checkpoints know.
    """
    for module in _sharded_modules(parts):
        module.reshard()


@contextmanager
def gathered(parts: Sequence[Transformer], how: DataParallel) -> Iterator[None]:
    """Keep all parameters of some parts gathered, for many forward passes.

    Inside, a forward pass communicates nothing over dp, so ranks may run different numbers of them.

    Comm: all-gather of the parameters over shard on entry.
    """
    for module in _sharded_modules(parts):
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        reshard(parts)
        for block in (block for part in parts for block in part.blocks()):
            if isinstance(block, FSDPModule):
                block.set_reshard_after_forward(how.reshard_after_forward, recurse=False)
