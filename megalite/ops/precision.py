"""Number formats inside of operators."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """``x`` in at least fp32, for what is computed inside."""
    return x if x.dtype == torch.float64 else x.float()


def as_given(x: Tensor) -> AbstractContextManager[object]:
    """Compute in the dtype of what is given, also where the caller has autocast on."""
    if x.device.type not in ("cpu", "cuda") or not torch.is_autocast_enabled(x.device.type):
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)
