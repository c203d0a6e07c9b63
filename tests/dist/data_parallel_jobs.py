"""Jobs that watch when FSDP2 gathers parameters, drops them and reduces gradients."""

import contextlib
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh, ParallelConfig, build_mesh
from megalite.engine.build import build_model
from megalite.engine.data_parallel import set_gradient_sync
from megalite.engine.model import Model
from megalite.models.outputs import Logits, Loss
from megalite.models.transformer import Transformer
from tests.dist import models

MICRO_BATCHES = ((0,), (1,), (0, 1))  # samples, counted from a share's first


class Calls(TorchDispatchMode):
    """Counts the collectives that run inside, by the operator's name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        if func.namespace == "c10d":
            self.seen[func._schema.name.removeprefix("c10d::")] += 1
        return func(*args, **(kwargs or {}))


def _build(launch: Launch, layout: dict[str, Any]) -> tuple[Model, Mesh]:
    parallel = ParallelConfig(**layout)
    mesh = build_mesh(launch, parallel, "cpu") if layout else Mesh.single()
    return build_model(models.config("llama"), mesh, parallel, seed=1), mesh


def _gathered_groups(part: Transformer) -> list[bool]:
    """Of each block and of the rest, whether its parameters are whole here."""
    blocks = [list(block.parameters()) for block in part.blocks()]
    inside = {id(parameter) for block in blocks for parameter in block}
    rest = [parameter for parameter in part.parameters() if id(parameter) not in inside]
    found = []
    for group in [*blocks, rest]:
        split = {
            isinstance(p, DTensor) and "shard" in (p.device_mesh.mesh_dim_names or ())
            for p in group
        }
        (is_split,) = split  # all of a group, or none
        found.append(not is_split)
    return found


def micro_batches(
    launch: Launch, layout: dict[str, Any], first: int | None = None
) -> dict[str, Any]:
    """A step's micro-batches: collectives and gathered groups of each, and the whole gradients.

    Args:
        launch: which process this is.
        layout: of the model; none is a process alone.
        first: its first sample; None is that of its share.
    """
    model, mesh = _build(launch, layout)
    (part,), whole = model.parts, models.batch("llama", 0)
    if first is None:
        first = models.SAMPLES // mesh.dp.size * mesh.dp.rank
    calls, groups = [], []
    for samples in MICRO_BATCHES:
        with Calls() as seen:
            set_gradient_sync(part, model.how, is_last=samples == MICRO_BATCHES[-1])
            part(whole.select(torch.tensor(samples) + first), Loss(1 / 64)).backward()
        calls.append(dict(seen.seen))
        groups.append(_gathered_groups(part))
    gradients = {
        name: p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad
        for name, p in part.named_parameters()
    }
    return {"calls": calls, "groups": groups, "gradients": gradients}


def _logits(model: Model) -> Tensor:
    (logits,) = model.evaluate([models.batch("llama", 0)], Logits())
    return logits


def gathered(launch: Launch, layout: dict[str, Any]) -> dict[str, Any]:
    """Forward passes inside a gathered block, one more on each next process, and one behind it."""
    model, _ = _build(launch, layout)
    (part,) = model.parts
    first = _logits(model)
    groups = []
    with model.gathered():
        groups.append(_gathered_groups(part))
        with Calls() as seen:
            inside = [_logits(model) for _ in range(1 + launch.rank)]
        groups.append(_gathered_groups(part))
    groups.append(_gathered_groups(part))
    with Calls() as seen_behind:
        behind = _logits(model)
    groups.append(_gathered_groups(part))
    return {
        "same": all(torch.equal(first, logits) for logits in [*inside, behind]),
        "inside": dict(seen.seen),
        "behind": dict(seen_behind.seen),
        "groups": groups,
    }


def changed(launch: Launch, layout: dict[str, Any]) -> dict[str, Any]:
    """A gathered block that ends with an error, and one behind it after all parameters changed."""
    model, _ = _build(launch, layout)
    (part,) = model.parts
    with contextlib.suppress(KeyError), model.gathered():
        _logits(model)
        raise KeyError
    groups = _gathered_groups(part)
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.mul_(2.0)
    with model.gathered():
        return {"groups": groups, "logits": _logits(model)}
