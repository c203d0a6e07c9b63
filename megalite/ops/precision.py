"""The precision in which the reference computes."""

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in fp32, or in fp64 if it is."""
    return x if x.dtype == torch.float64 else x.float()
