"""Initial values: a function of (seed, parameter name, element index), so of no layout."""

import torch
from torch import Tensor

from megalite.engine.lora import owner_and_name
from megalite.engine.pages import prefer_huge_pages
from megalite.layers.layer import Initial, Layer
from megalite.layers.linear import AdaptableLinear
from megalite.layers.shards import Share, local_box, local_part
from megalite.models.transformer import Transformer
from megalite.ops.random import initial_normal
from megalite.seeds import fold, hash64


@torch.no_grad()
def initialise(part: Transformer, seed: int) -> None:
    """Give every parameter storage on the mesh's device and its initial values.

    Call it after sharding, so that a process makes only what it holds.

    Args:
        part: of a model, its parameters perhaps on the meta device.
        seed: of the run.
    """
    part.to_empty(device=part.mesh.device)
    prefer_huge_pages(local_part(parameter) for parameter in part.parameters())
    for prefix, module in part.named_modules():
        if not isinstance(module, Layer):
            continue
        for name, initial in module.initial.items():
            full_name = f"{prefix}.{name}" if prefix else name
            key = fold(seed, hash64(owner_and_name(full_name)[1]))
            if name == "weight" and isinstance(module, AdaptableLinear) and module.quantised:
                share = module.quantised.share(part.mesh.device)
                _fill(share, initial, key)
                module.quantised.hold(share)
            else:
                _fill(getattr(module, name), initial, key)


def _fill(parameter: Tensor | Share, initial: Initial, key: int) -> None:
    local = local_part(parameter)
    if local.numel() == 0:
        return
    if initial.std == 0.0:
        local.fill_(initial.value)
        return
    shape, offset = local_box(parameter)
    cut = [d for d in range(len(shape)) if shape[d] != parameter.shape[d]]
    first = cut[0] if cut else 0
    bounds = offset[first], offset[first] + shape[first]
    values = initial_normal(key, tuple(parameter.shape), first, bounds, local.device)
    for d in cut[1:]:
        values = values.narrow(d, offset[d], shape[d])
    local.copy_(values * initial.std)
