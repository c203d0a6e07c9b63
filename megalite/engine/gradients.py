"""The gradient of the whole model, wherever its pieces are: norm, clipping, overflow."""

from collections.abc import Iterable

import torch
from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import all_reduce_sum
from megalite.engine.copies import axes_of_copies
from megalite.engine.model import Model
from megalite.layers.shards import gradient_of, local_part
from megalite.torch_private import multiply_each_, norms_of


def _is_counted(name: str, parameter: Tensor, mesh: Mesh, owned: set[str]) -> bool:
    """Whether this process is the one that counts its piece of a parameter in a global sum."""
    if name not in owned:
        return False
    return all(axis.rank == 0 for axis in axes_of_copies(parameter, mesh).values())


def clip_grad_norm(model: Model, max_norm: float, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Divide gradients by ``scale``, measure their global norm, and clip them to ``max_norm``.

    Args:
        model: whose gradients.
        max_norm: largest norm left; 0 doesn't clip.
        scale: what the loss was multiplied by (fp16).

    Returns:
        The norm before clipping, fp32 scalar, and the number of processes with a gradient that is
        not finite, int32 scalar; both the same on all processes. Where it is not 0 the
        gradients are not finite either way and the step must be dropped.

    Comm: one all-reduce of two numbers over the world. The flag is a count: a maximum loses NaN
    on some backends.
    """
    mesh, owned = model.mesh, model.owned_names()
    gradients = [local_part(gradient_of(p)) for p in model.parameters() if p.grad is not None]
    counted = [
        local_part(gradient_of(parameter))
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and _is_counted(name, parameter, mesh, owned)
    ]
    total = _sum_of_squares(counted, mesh.device)
    bad = (~torch.isfinite(_sum_of_squares(gradients, mesh.device))).double()
    both = torch.stack((torch.where(torch.isfinite(total), total, 0.0), bad))
    both = all_reduce_sum(both, mesh.world)
    norm = both[0].sqrt() / scale
    factor = torch.full_like(norm, 1.0 / scale)
    if max_norm > 0:
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if gradients:
        multiply_each_(gradients, factor.to(gradients[0].dtype))
    return norm.float(), both[1].to(torch.int32)


def _sum_of_squares(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    tensors = [t for t in tensors if t.numel()]
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = norms_of(tensors)
    return torch.stack(norms).double().square().sum()
