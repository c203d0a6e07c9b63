"""What a check is given: the device and sizes it runs on, its time, and where its results go."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Here:
    """Where a check runs.

    Attributes:
        seconds: that the check may take; it leaves out what it has no time for.
        rows: file that results are appended to, a JSON object a line.
        folder: of what checks leave for each other, such as the demo's corpus.
        is_rehearsal: on the CPU: the CUDA kernels on the emulator, everything tiny.
        is_small: few and small cases, as under a sanitizer.
    """

    seconds: float
    rows: Path
    folder: Path
    is_rehearsal: bool = False
    is_small: bool = False
    started: float = field(default_factory=time.monotonic)

    @property
    def device(self) -> str:
        """Where tensors are."""
        return "cpu" if self.is_rehearsal else "cuda"

    @property
    def backend(self) -> str:
        """The backend of the operators that are checked."""
        return "simt" if self.is_rehearsal else "cuda"

    @property
    def is_tiny(self) -> bool:
        """Whether sizes are those of a rehearsal or of a sanitizer."""
        return self.is_rehearsal or self.is_small

    def dtypes(self) -> list[torch.dtype]:
        """The number formats of attention, the default first."""
        has_bf16 = self.is_rehearsal or torch.cuda.get_device_capability() >= (8, 0)
        return [torch.bfloat16, torch.float16] if has_bf16 else [torch.float16]

    def left(self) -> float:
        """Seconds until the time is over."""
        return self.seconds - (time.monotonic() - self.started)

    def note(self, case: str, fault: str = "", /, **figures: Any) -> None:
        """Write a result.

        Args:
            case: what was run.
            fault: what is wrong; empty: nothing.
            figures: numbers and words, the unit in the name.
        """
        self._write({"case": case, "fault": fault, "figures": figures})

    def leave_out(self, case: str, reason: str) -> None:
        """Write that something was not run."""
        self._write({"case": case, "left_out": reason})

    def _write(self, row: dict[str, Any]) -> None:
        with self.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else ''}"[:240]
