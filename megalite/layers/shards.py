"""What this process holds of a tensor that is spread over several."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megalite.torch_private import local_shape_and_offset


@dataclass(frozen=True)
class Share:
    """What this process has of a whole tensor that is in no parameter.

    Attributes:
        local: its values.
        shape: of the whole.
        offset: where in the whole its first element is.
    """

    local: Tensor
    shape: torch.Size
    offset: tuple[int, ...]

    @classmethod
    def whole(cls, shape: torch.Size) -> "Share":
        """All of a tensor, fp32 in the host's memory."""
        return cls(torch.empty(shape), shape, (0,) * len(shape))


def local_part(tensor: Tensor | Share) -> Tensor:
    """What this process holds of a tensor."""
    if isinstance(tensor, Share):
        return tensor.local
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_box(parameter: Tensor | Share) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset, in the whole parameter, of what this process holds of it."""
    if isinstance(parameter, Share):
        return tuple(parameter.local.shape), parameter.offset
    if not isinstance(parameter, DTensor):
        return tuple(parameter.shape), (0,) * parameter.dim()
    return local_shape_and_offset(parameter.shape, parameter.device_mesh, parameter.placements)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter that has one, cut as the parameter is.

    PyTorch 2.8 gathers a gradient that accumulates in uneven pieces along a dimension behind the
    first; it becomes pieces again here.
    """
    assert parameter.grad is not None
    cut = getattr(parameter, "placements", None)
    if isinstance(parameter.grad, DTensor) and parameter.grad.placements != cut:
        parameter.grad = parameter.grad.redistribute(placements=cut)
    return parameter.grad
