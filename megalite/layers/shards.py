"""What this process holds of a tensor that is spread over several."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from megalite.torch_private import local_shape_and_offset


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def local_box(parameter: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and offset, in the whole parameter, of what this process holds of it."""
    if not isinstance(parameter, DTensor):
        return tuple(parameter.shape), (0,) * parameter.dim()
    return local_shape_and_offset(parameter.shape, parameter.device_mesh, parameter.placements)


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient of a parameter that has one."""
    assert parameter.grad is not None
    return parameter.grad
