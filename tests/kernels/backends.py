"""Which backends run here, and the rule by which a kernel's error is judged.

The emulated GPU is several: its attention kernels are chosen by its compute capability. A few of
simt_sm86, whose blocks have little shared memory, are others than simt_sm80's.
"""

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from megalite import ops
from megalite.ops.backends import available

NAMES = [name for name in ("cpu", "cuda") if available(name)]
if not torch.cuda.is_available():
    NAMES = [name for name in NAMES if name != "cuda"]
SIMT_NAMES = ["simt_sm80", "simt_sm70"] if available("simt") else []
NAMES += SIMT_NAMES
on_every_backend = pytest.mark.parametrize("name", NAMES)
# Kernels of rows are the same for both capabilities.
on_every_row_backend = pytest.mark.parametrize("name", [n for n in NAMES if n != "simt_sm70"])
needs_emulator = pytest.mark.skipif(not SIMT_NAMES, reason="the emulator is not built")
needs_cpu = pytest.mark.skipif("cpu" not in NAMES, reason="the CPU backend is not built")


def emulator() -> ModuleType:
    """The emulator's settings."""
    return importlib.import_module("megalite._simt")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force a backend of ``NAMES``, or ``reference``, for the ops called inside."""
    if name.startswith("simt_sm"):
        emulator().set_architecture(int(name.removeprefix("simt_sm")))
        name = "simt"
    with ops.backend(name):
        yield


def set_schedule(name: str, number: int) -> None:
    """Let later launches run in another order, where the order is ours to choose."""
    if name in SIMT_NAMES:
        emulator().set_seed(number)


def attention_types(name: str) -> list[torch.dtype]:
    """The dtypes of a backend's attention."""
    if name == "cpu":
        return [torch.float32, torch.bfloat16, torch.float16]
    capability = torch.cuda.get_device_capability() if name == "cuda" else (int(name[-2]), 0)
    return [torch.float16, torch.bfloat16] if capability >= (8, 0) else [torch.float16]


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
