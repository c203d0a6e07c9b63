"""Compiles the emulator together with test kernels."""

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CORE = ["fiber.cpp", "shadow.cpp", "machine.cpp", "warp.cpp"]
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-DMEGALITE_SIMT", "-Wall", "-Wextra", "-Werror"]


def build_library(sources: list[Path], folder: Path, include: Sequence[str] = ()) -> Path:
    """Compile ``sources`` with the emulator, or reuse the library of equal text and flags."""
    headers = [
        *(ROOT / "csrc").glob("*.h"),
        *(ROOT / "csrc/simt").glob("*.h"),
        *(ROOT / "csrc/cuda").glob("*.cuh"),
    ]
    text = b"".join(p.read_bytes() for p in [*sources, *sorted(headers), *HERE.glob("*.h")])
    digest = hashlib.sha256(text + " ".join(FLAGS).encode()).hexdigest()
    target = folder / f"simt_cases_{digest[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        folders = [f"-I{path}" for path in [ROOT / "csrc", *include]]
        command = ["g++", *FLAGS, "-shared", *folders, *map(str, sources)]
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.rename(target)
    return target
