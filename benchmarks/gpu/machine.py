"""Which machine this is, and whether the CUDA kernels run on it; building them where they don't."""

import os
import platform
import shutil
import subprocess
import sys

import torch

from benchmarks.gpu.external import run_words, tail
from benchmarks.gpu.figures import MACHINE
from benchmarks.gpu.here import Here
from megalite import ops
from megalite.ops import attention
from megalite.ops import mask as masks
from megalite.ops.backends import available, unusable


def facts(here: Here) -> dict[str, str | int | float]:
    """What the figures depend on."""
    found: dict[str, str | int | float] = {
        "card": "none: a rehearsal on the CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpus": os.cpu_count() or 0,
    }
    if here.device == "cpu":
        return found
    card = torch.cuda.get_device_properties(0)
    found |= {
        "card": card.name,
        "capability": f"{card.major}.{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "l2_mib": card.L2_cache_size / 2**20,
        "memory_gib": card.total_memory / 2**30,
        "cuda": str(torch.version.cuda),
    }
    if program := shutil.which("nvidia-smi"):
        query = "driver_version,clocks.max.sm,power.limit"
        words = [program, "--id=0", f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        names = ("driver", "most_mhz", "power_limit_w")
        found |= dict(zip(names, [word.strip() for word in said.split(",")], strict=False))
    return found


def run(here: Here) -> None:
    """Both passes of a small attention."""
    if here.device == "cuda" and not torch.cuda.is_available():
        here.note(MACHINE, "PyTorch sees no GPU; --rehearse runs on the CPU")
        return
    here.note(MACHINE, **facts(here))
    reason = unusable(torch.device("cuda", 0)) if here.device == "cuda" else None
    if here.is_rehearsal and not available("simt"):
        reason = "the emulator is not built: make install"
    if reason is not None:
        here.note("the kernels", reason)
        return
    rows = 9 if here.is_tiny else 301
    x = torch.randn(1, rows, 2, 64, device=here.device, dtype=here.dtypes()[0])
    x.requires_grad_()
    with ops.backend(here.backend):
        attention(x, x, x, masks.causal(1, rows).to(here.device)).sum().backward()
    here.wait()
    here.note(
        "the kernels", "" if x.grad is not None and bool(x.grad.isfinite().all()) else "not finite"
    )


def build(here: Here) -> None:
    """The extension for this machine's Python, PyTorch and GPU, in place."""
    words = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = run_words(here, words, {"MEGALITE_CUDA": "1"})
    here.note("build", "" if done.returncode == 0 else tail(done, 800))
