"""What a device can do, by its name or measured, and how much of its memory was used."""

import itertools
import re
import resource
import time
from functools import cache

import torch

from megalite.ops.matrix_product import product
from megalite.training.metrics.gpu_health import nvml_device

PEAK_TFLOPS = {  # words of a device's name: (half precision on tensor cores, fp32), dense
    "H100 PCIe": (756.0, 51.2),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 66.9),
    "H200": (989.0, 66.9),
    "H800": (989.0, 66.9),
    "A100": (312.0, 19.5),
    "A800": (312.0, 19.5),
    "V100-PCIE": (112.0, 14.0),
    "V100": (125.0, 15.7),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "A40": (149.7, 37.4),
    "A30": (165.0, 10.3),
    "A10G": (70.0, 31.5),
    "A10": (125.0, 31.2),
    "T4": (65.0, 8.1),
}  # of the vendor's data sheets


def peak_tflops(device: torch.device, precision: str) -> float:
    """What the device can do, in TFLOP/s: by its name on a GPU, a measured GEMM on a CPU.

    An unknown GPU is measured too.
    """
    known = known_tflops(_gpu_name(device), precision) if device.type == "cuda" else None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    return known or measured_tflops(device, dtype)


def known_tflops(name: str, precision: str) -> float | None:
    """The data sheet's TFLOP/s of a device called ``name``, or None.

    Whole words count: an RTX A1000 is no A100.
    """
    for known, (half, single) in PEAK_TFLOPS.items():
        if re.search(rf"\b{re.escape(known)}\b", name):
            return single if precision == "fp32" else half
    return None


def _gpu_name(device: torch.device) -> str:
    """The name by NVML, or PyTorch's."""
    found = nvml_device(device)
    if found is None:
        return torch.cuda.get_device_name(device)
    nvml, handle = found
    try:
        name: str | bytes = nvml.nvmlDeviceGetName(handle)
    except nvml.NVMLError:
        return torch.cuda.get_device_name(device)
    return name.decode() if isinstance(name, bytes) else name


@cache
def measured_tflops(device: torch.device, dtype: torch.dtype, seconds: float = 0.25) -> float:
    """The best of many square matrix products, in TFLOP/s; measured once in a process.

    Small ones among them end before the system gives the core to another process.
    """
    factors = [torch.randn(size, size, device=device).to(dtype) for size in (512, 1024)]
    best, until = 0.0, time.perf_counter() + seconds
    for a in itertools.cycle(factors):
        started = _now(device)
        product(a, a)
        best = max(best, 2.0 * len(a) ** 3 / (_now(device) - started) / 1e12)
        if time.perf_counter() > until:
            break
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def memory_gib(device: torch.device) -> float:
    """Peak memory of this process: the device's, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
