"""The bubble of a pipeline: the share of a step in which a stage's process computes nothing."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def bubble_in_theory(processes: int, micro_batches: int, chunks: int = 1) -> float:
    """The bubble of stages that all take as long and send in no time.

    Args:
        processes: p, along the pipeline.
        micro_batches: m, of a step.
        chunks: v, stages a process (interleaved 1F1B).

    Returns:
        (p - 1) / (v m + p - 1), the same for GPipe and 1F1B: v = 1.

    Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2, as a share of the whole step.
    """
    return (processes - 1) / (chunks * micro_batches + processes - 1)


class BusyClock:
    """Adds up the time in which this process computes, on the host's clock or the GPU's."""

    def __init__(self, device: torch.device) -> None:
        """Start the step's clock.

        Attributes:
            is_late: what it tells is known only once the device has done the step.
        """
        self.is_late = self._is_cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._start = self._now()

    def _now(self) -> Any:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count the time inside."""
        started = self._now()
        yield
        self._spans.append((started, self._now()))

    def end(self) -> None:
        """The step is done, or queued on a GPU."""
        self._end = self._now()

    def idle_share(self) -> float:
        """The share of the step's time that was not counted; on a GPU the host waits for it."""
        end = self._end
        if self._is_cuda:
            end.synchronize()
            spans = [started.elapsed_time(ended) for started, ended in self._spans]
            whole = self._start.elapsed_time(end)
        else:
            spans = [ended - started for started, ended in self._spans]
            whole = end - self._start
        return 1.0 - sum(spans) / whole
