"""Builds the emulator together with the test kernels, once for the same sources."""

import ctypes
import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CORE = ["fiber.cpp", "shadow.cpp", "machine.cpp", "warp.cpp"]
FLAGS = ["-std=c++17", "-O2", "-g1", "-fPIC", "-DMEGALITE_SIMT", "-Wall", "-Wextra", "-Werror"]


def build_library(sources: list[Path], folder: Path) -> Path:
    """Compile ``sources`` with the emulator, or reuse the library of equal text."""
    headers = [*(ROOT / "csrc/simt").glob("*.h"), *(ROOT / "csrc/cuda").glob("intrinsics*.cuh")]
    text = b"".join(p.read_bytes() for p in [*sources, *sorted(headers), *HERE.glob("*.h")])
    target = folder / f"simt_cases_{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".partial")
        command = ["g++", *FLAGS, "-shared", f"-I{ROOT / 'csrc/cuda'}", *map(str, sources)]
        subprocess.run([*command, "-o", str(partial)], check=True)
        partial.rename(target)
    return target


@pytest.fixture(scope="session")
def simt() -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("the SIMT backend needs g++, which is not installed")
    sources = [ROOT / "csrc/simt" / name for name in CORE] + [HERE / "cases.cpp"]
    library = ctypes.CDLL(str(build_library(sources, ROOT / "build/simt_tests")))
    for name in ["case_name", "run_case", "product_sm80", "product_sm70", "sums", "banks"]:
        getattr(library, name).restype = ctypes.c_char_p
    library.convert_half.restype = ctypes.c_float
    library.convert_to.restype = ctypes.c_uint16
    library.convert_to.argtypes = [ctypes.c_int, ctypes.c_float]
    return library
