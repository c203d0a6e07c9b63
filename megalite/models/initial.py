"""Initial values: a function of (seed, parameter name, element index), so of no layout."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from megalite.ops.random import fold, hash64, initial_normal
from megalite.parallel.layers import Initial, Layer


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Give every parameter storage on the mesh's device and its initial values.

    Call it after sharding, so that a process makes only what it holds.

    Args:
        model: a Transformer, its parameters perhaps on the meta device.
        seed: of the run.
    """
    model.to_empty(device=model.mesh.device)
    for prefix, module in model.named_modules():
        if not isinstance(module, Layer):
            continue
        for name, initial in module.initial.items():
            full_name = f"{prefix}.{name}" if prefix else name
            _fill(getattr(module, name), initial, fold(seed, hash64(full_name)))


def local_box(parameter: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset, in the whole parameter, of what this process holds of it."""
    if not isinstance(parameter, DTensor):
        return tuple(parameter.shape), (0,) * parameter.dim()
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return tuple(shape), tuple(offset)


def _fill(parameter: Tensor, initial: Initial, key: int) -> None:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    if local.numel() == 0:
        return
    if initial.std == 0.0:
        local.fill_(initial.value)
        return
    shape, offset = local_box(parameter)
    cut = [d for d in range(len(shape)) if shape[d] != parameter.shape[d]]
    first = cut[0] if cut else 0
    bounds = offset[first], offset[first] + shape[first]
    values = initial_normal(key, tuple(parameter.shape), first, bounds)
    for d in cut[1:]:
        values = values.narrow(d, offset[d], shape[d])
    local.copy_(values * initial.std)
