"""Which implementation of the ops runs: it follows the device unless one is forced.

``reference`` is differentiable PyTorch and is always there. The others are namespaces of registered
operators with one schema (``csrc/schema.h``): ``cpu`` and ``cuda`` share ``torch.ops.megalite`` and
are told apart by the tensors' device; ``simt`` is ``torch.ops.megalite_simt``.
"""

import contextlib
from collections.abc import Iterator

from torch import Tensor

from megalite.errors import KernelUnavailable

BACKENDS = ("reference", "cpu", "cuda", "simt")
_forced: list[str] = []


def _check(name: str) -> None:
    if name not in BACKENDS:
        raise KernelUnavailable(f"backend {name!r}: must be one of {', '.join(BACKENDS)}")


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Force one backend for the ops called inside; their gradients use the same one.

    Raises:
        KernelUnavailable: ``name`` is unknown, or (when an op is called) is not in this build.
    """
    _check(name)
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def use_backend(name: str | None) -> None:
    """Force one backend for the rest of the process; None follows the device again."""
    _forced.clear()
    if name is not None:
        _check(name)
        _forced.append(name)


def chosen(tensor: Tensor) -> str:
    """The name of the backend an op on ``tensor`` uses."""
    if _forced:
        return _forced[-1]
    return "cuda" if tensor.device.type == "cuda" else "reference"


def kernels(tensor: Tensor):
    """The operators of the backend for ``tensor``, or None for the reference."""
    name = chosen(tensor)
    if name == "reference":
        return
    raise KernelUnavailable(f"backend {name!r} is not built")
