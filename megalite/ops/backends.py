"""Which implementation of the ops runs: it follows the device unless one is forced.

``reference`` is differentiable PyTorch; a package that was installed without a compiler computes
with it on CPUs, and says so once. The others are namespaces of registered operators with one schema
(``csrc/schema.cpp``): ``cpu`` and ``cuda`` share ``torch.ops.megalite`` and are told apart
by the tensors' device; ``simt`` is ``torch.ops.megalite_simt``, the CUDA source on the CPU.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megalite.errors import KernelUnavailable
from megalite.extensions import extension
from megalite.ops.fake import register
from megalite.torch_private import has_kernel

BACKENDS = ("reference", "cpu", "cuda", "simt")
_LIBRARIES = {"cpu": "_kernels", "cuda": "_kernels", "simt": "_simt"}
NEWEST = "embedding"  # the last operator that came
LEAST_CAPABILITY = (7, 0)  # of a GPU that the CUDA kernels run on
CUDA_BUILD = (
    "build them for it beside nvcc and a CUDA build of PyTorch, by `MEGALITE_CUDA=1 pip install "
    "-e .` (docs/gpu.md)"
)
COMPILE = (
    "with a C++ compiler (Debian: apt install g++ python3-dev) run `make install`, or `pip install "
    "--force-reinstall --no-deps .`"
)
UNCOMPILED = f"installed without compiled operators, so PyTorch's compute, far slower: {COMPILE}"
_forced: list[str] = []
_found: dict[str, Any] = {}


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
    """The name of the backend an op on ``tensor`` uses; fp64 is the reference's."""
    if _forced:
        return _forced[-1]
    if tensor.dtype == torch.float64:
        return "reference"
    if tensor.device.type == "cuda":
        return "cuda"
    return "cpu" if _kept("compiled", compiled) else "reference"


def _kept(key: str, find: Callable[[], Any]) -> Any:
    """What ``find`` gives, found once: a dictionary, as ``torch.compile`` looks past caches."""
    if key not in _found:
        _found[key] = find()
    return _found[key]


@cache
def compiled() -> bool:
    """Whether this package has compiled operators; a warning says so once where it has none."""
    if extension("_kernels") is None:
        warnings.warn(UNCOMPILED, stacklevel=2)
        return False
    return True


@cache
def _load(library: str) -> None:
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise KernelUnavailable(
            f"{library}: must be compiled against the PyTorch that runs it, {torch.__version__}; "
            f"loading it says {str(error).splitlines()[0]}: build again: {COMPILE}"
        ) from None
    if Path(library).name.startswith("_kernels"):
        register()


@cache
def available(name: str) -> bool:
    """Whether this build has a backend; loads its operators."""
    if name == "reference":
        return True
    library = extension(_LIBRARIES[name])
    if library is None:
        return False
    _load(library)
    key = "CUDA" if name == "cuda" else "CPU"
    space = "megalite_simt" if name == "simt" else "megalite"
    return has_kernel(f"{space}::attention_backward", key)


def unusable(device: torch.device) -> str | None:
    """Why the CUDA kernels can't run on a GPU, and what to do; None where they can."""
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            f"its compute capability is {capability[0]}.{capability[1]}, the kernels need "
            f"{LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} or later"
        )
    if not available("cuda"):
        return f"this build has no CUDA kernels: {CUDA_BUILD}"
    row = torch.zeros(1, 1, dtype=torch.int32, device=device)
    try:
        torch.ops.megalite.mask_plan(row, row, 1)
        torch.cuda.synchronize(device)
    except RuntimeError as error:  # such as no kernel image for its architecture
        return f"a kernel fails on it ({str(error).splitlines()[0]}): {CUDA_BUILD}"
    return None


def kernels(tensor: Tensor) -> Any:
    """The operators of the backend for ``tensor``, or None for the reference.

    Raises:
        KernelUnavailable: that backend is not in this build, or the build is an older one.
    """
    name = chosen(tensor)
    return None if name == "reference" else _kept(name, partial(_operators, name))


def _operators(name: str) -> Any:
    if not available(name):
        build = CUDA_BUILD if name == "cuda" else COMPILE
        raise KernelUnavailable(
            f"backend {name!r} is not built: {build}, or choose `reference`, which is slow"
        )
    ops = torch.ops.megalite_simt if name == "simt" else torch.ops.megalite
    if not hasattr(ops, NEWEST):
        raise KernelUnavailable(
            f"backend {name!r}: this build is older than its operators, without {NEWEST}: "
            "run `make install` again"
        )
    return ops


def quantised_kernels(tensor: Tensor) -> Any:
    """As :func:`kernels`, for quantised matrices.

    Raises:
        KernelUnavailable: the backend has none in this build.
    """
    ops = kernels(tensor)
    if ops is not None and not hasattr(ops, "dequantised"):
        raise KernelUnavailable(
            f"lora.base_format: backend {chosen(tensor)!r} is of an older build, without quantised "
            "matrices: run `make install` again"
        )
    return ops


def capped_kernels(tensor: Tensor) -> Any:
    """As :func:`kernels`, for attention with capped scores, which CPUs alone have kernels of.

    Raises:
        KernelUnavailable: that backend has none in this build.
    """
    ops, name = kernels(tensor), chosen(tensor)
    if ops is None or name == "cpu":
        return ops
    raise KernelUnavailable(
        f"attention score_cap: must be 0 on backend {name!r}, whose kernels cap no scores: run a "
        "model with --model.score_cap on a CPU"
    )


def row_kernels(tensor: Tensor) -> Any:
    """As :func:`kernels`, for operators of generation, which CPUs alone have kernels of.

    Returns:
        None elsewhere: there they are made of other operators.

    Raises:
        KernelUnavailable: the CPU's are not in this build.
    """
    if chosen(tensor) != "cpu" or tensor.dtype != torch.float32:
        return None
    ops = kernels(tensor)
    if not hasattr(ops, "row_products"):
        raise KernelUnavailable(
            "generation: this build is older than its kernels: run `make install` again"
        )
    return ops


def paged_kernels(tensor: Tensor, score_cap: float) -> Any:
    """As :func:`kernels`, for attention over keys and values in blocks, of which this is one pool.

    Returns:
        None for the reference, and where no kernel caps scores: there it is made of other
        operators.

    Raises:
        KernelUnavailable: that backend has none in this build.
    """
    name = chosen(tensor)
    if name == "cpu":
        return row_kernels(tensor)
    ops = None if score_cap else kernels(tensor)
    if ops is not None and not hasattr(ops, "paged_attention"):
        raise KernelUnavailable(
            f"generation: backend {name!r} is of an older build, without attention over blocks: "
            "run `make install` again"
        )
    return ops


def tape_class(tensor: Tensor) -> Any:
    """What records operators on tensors of its device and runs them again (``csrc/tape.cpp``).

    Returns:
        None for the reference and for the emulator, whose operators are not worth it.

    Raises:
        KernelUnavailable: it is not in this build.
    """
    if chosen(tensor) not in ("cpu", "cuda"):
        return None
    kernels(tensor)
    try:
        return torch.classes.megalite.Tape
    except RuntimeError:  # what PyTorch raises for a class that no library has registered
        raise KernelUnavailable(
            "generation: this build is older than its tapes: run `make install` again"
        ) from None
