"""Which backends run here, and the rule by which a kernel's error is judged."""

import pytest
import torch
from torch import Tensor

from megalite.ops.backends import available

NAMES = [name for name in ("cpu", "simt", "cuda") if available(name)]
if not torch.cuda.is_available():
    NAMES = [name for name in NAMES if name != "cuda"]
on_every_backend = pytest.mark.parametrize("name", NAMES)


def device_of(name: str) -> str:
    """Where a backend's tensors are."""
    return "cuda" if name == "cuda" else "cpu"


def assert_as_good(
    ours: Tensor, torch_result: Tensor, exact: Tensor, factor: float, size: float = 1.0
) -> None:
    """Our error against fp64 is at most ``factor`` times PyTorch's, by mean and by max.

    Where PyTorch has no error at all, roundings of numbers of the inputs' ``size`` are allowed.
    """
    if exact.numel() == 0:
        assert ours.numel() == 0
        return
    error = (ours.double() - exact).abs()
    theirs = (torch_result.double() - exact).abs()
    rounding = torch.finfo(ours.dtype).eps * max(float(exact.abs().max()), size)
    rounding *= 4 if ours.dtype == torch.float32 else 1
    assert torch.isfinite(ours).all()
    assert float(error.max()) <= max(factor * float(theirs.max()), rounding)
    assert float(error.mean()) <= max(factor * float(theirs.mean()), rounding)
