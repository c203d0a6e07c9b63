"""The gradient of the whole model, wherever its pieces are: norm, clipping, overflow."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import all_reduce_sum
from megalite.engine.copies import axes_of_copies
from megalite.engine.model import Model
from megalite.layers.shards import gradient_of, local_part
from megalite.models.outputs import Scale
from megalite.torch_private import multiply_each_, norms_of


def _is_counted(name: str, parameter: Tensor, mesh: Mesh, owned: set[str]) -> bool:
    """Whether this process is the one that counts its piece of a parameter in a global sum."""
    if name not in owned:
        return False
    return all(axis.rank == 0 for axis in axes_of_copies(parameter, mesh).values())


class Clipped(NamedTuple):
    """What is known of gradients once they are clipped; the same on all processes.

    Attributes:
        norm: before clipping, fp64 scalar; of the finite pieces where ``bad`` is not 0.
        bad: the number of processes with a gradient that is not finite, fp64 scalar.
        sums: of what was summed beside them, fp64 [n].
    """

    norm: Tensor
    bad: Tensor
    sums: Tensor


def clip_grad_norm(
    model: Model, max_norm: float, scale: Scale = 1.0, beside: Tensor | None = None
) -> Clipped:
    """Divide gradients by ``scale``, measure their global norm, and clip them to ``max_norm``.

    Args:
        model: whose gradients.
        max_norm: largest norm left; 0 doesn't clip.
        scale: what the loss was multiplied by (fp16).
        beside: fp64 [n], numbers of this data-parallel rank to be summed over dp.

    Returns:
        Norm, flag and sums, on the device. Where the flag is not 0 the gradients are not finite
        either way and the step must be dropped.

    Comm: one all-reduce of 2 + n numbers over the world. The flag is a count: a maximum loses NaN
    on some backends.
    """
    mesh, owned = model.mesh, model.owned_names()
    counted = {id(p) for name, p in model.named_parameters() if _is_counted(name, p, mesh, owned)}
    gradients = {
        id(p): local_part(gradient_of(p)) for p in model.parameters() if p.grad is not None
    }
    gradients = {key: gradient for key, gradient in gradients.items() if gradient.numel()}
    norms = _norms(gradients)
    total = _sum_of_squares([norms[key] for key in norms if key in counted], mesh.device)
    bad = (~torch.isfinite(_sum_of_squares(list(norms.values()), mesh.device))).double()
    packed = torch.stack((torch.where(torch.isfinite(total), total, 0.0), bad))
    if beside is not None:
        is_counted = mesh.tp.rank == 0 and mesh.pp.rank == 0  # the same on all of tp and pp
        packed = torch.cat((packed, beside if is_counted else torch.zeros_like(beside)))
    packed = all_reduce_sum(packed, mesh.world)
    norm = packed[0].sqrt() / scale
    factor = torch.ones_like(norm) / scale
    if max_norm > 0:
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    _multiply_each(list(gradients.values()), factor)
    return Clipped(norm, packed[1], packed[2:])


def _norms(gradients: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The norm of each, all read once."""
    if not gradients:
        return {}
    return dict(zip(gradients, norms_of(list(gradients.values())), strict=True))


def _multiply_each(gradients: list[Tensor], factor: Tensor) -> None:
    """Multiply in place; a CPU, where reading a number waits for nothing, not by 1."""
    if gradients and not (factor.device.type == "cpu" and bool(factor == 1.0)):
        multiply_each_(gradients, factor.to(gradients[0].dtype))


def _sum_of_squares(norms: Sequence[Tensor], device: torch.device) -> Tensor:
    if not norms:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(list(norms)).double().square().sum()
