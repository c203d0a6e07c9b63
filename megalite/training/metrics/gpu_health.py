"""How fast a GPU is at the moment: the time of one product, its clock, and what holds it back."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

SIZE, TIMES = 2048, 4  # of the product, in the run's number format
REASONS = {  # of NVML's clock event reasons (nvml.h), those that slow down
    0x4: "a power cap",
    0x8: "hardware slowdown",
    0x20: "heat",
    0x40: "heat (hardware)",
    0x80: "power brake",
}


class Health(NamedTuple):
    """What is known of a GPU; a number that isn't known is not a number.

    Attributes:
        product_ms: of some products, the same on all GPUs of a run.
        clock_mhz: of its multiprocessors.
        top_clock_mhz: that they could have.
        reasons: bits of ``REASONS``.
    """

    product_ms: float = math.nan
    clock_mhz: float = math.nan
    top_clock_mhz: float = math.nan
    reasons: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.clock_mhz):
            return "its clock is not known (pip install nvidia-ml-py)"
        held = [text for bit, text in REASONS.items() if int(self.reasons) & bit]
        by = f", held by {' and '.join(held)}" if held else ""
        return f"its clock is {self.clock_mhz:.0f} of {self.top_clock_mhz:.0f} MHz{by}"


class GpuHealth:
    """Times a product on a GPU now and then, and asks NVML; of a CPU nothing is known."""

    def __init__(self, device: torch.device, precision: str) -> None:
        """Take memory for the product: two matrices.

        Args:
            device: of this process.
            precision: number format of the run.
        """
        self._timed: tuple[torch.cuda.Event, torch.cuda.Event] | None = None
        self._factor: Tensor | None = None
        if device.type == "cuda":
            dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
            self._factor = torch.ones(SIZE, SIZE, device=device, dtype=dtype)
            self._product = torch.empty_like(self._factor)
            self._nvml = nvml_device(device)

    def look(self) -> Health:
        """The time of the product that the call before began, and the clock; begins another.

        Nothing is waited for.
        """
        if self._factor is None:
            return Health()
        before, taken = self._timed, math.nan
        if before is not None and before[1].query():
            taken = before[0].elapsed_time(before[1])
        begun, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun.record()
        for _ in range(TIMES):
            torch.mm(self._factor, self._factor, out=self._product)
        ended.record()
        self._timed = begun, ended
        return Health(taken, *self._clocks())

    def _clocks(self) -> tuple[float, float, float]:
        if self._nvml is None:
            return math.nan, math.nan, math.nan
        nvml, handle = self._nvml
        try:
            return (
                float(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
                float(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
                float(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
            )
        except nvml.NVMLError:
            return math.nan, math.nan, math.nan


def nvml_device(device: torch.device) -> tuple[Any, Any] | None:
    """NVML's module and its handle of a GPU; None where it isn't installed or doesn't answer.

    NVML numbers devices its own way and is asked by their UUID.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None
