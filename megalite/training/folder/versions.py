"""What computes a run: versions of libraries, the kernels' build, the device, the processes."""

import importlib.util
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from megalite import __version__
from megalite.files.content import fingerprint

KERNELS = "megalite._kernels"


def versions(device: torch.device, processes: int, code: Iterable[str] = ()) -> dict[str, str]:
    """Versions by name, as this process has them.

    Args:
        device: that computes.
        processes: of the run.
        code: files of a user's own that it calls.
    """
    spec = importlib.util.find_spec(KERNELS)
    library = Path(spec.origin) if spec is not None and spec.origin else None
    found = {
        "megalite": __version__,
        "kernels": fingerprint([library])[:12] if library else "none",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processes": str(processes),
        **{file: fingerprint([Path(file)])[:12] for file in code},
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found
