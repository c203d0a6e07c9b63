"""The emulator with the test kernels, compiled once for the same sources."""

import ctypes
import shutil

import pytest

from tests.kernels.simt.library import CORE, HERE, ROOT, build_library


@pytest.fixture(scope="session")
def simt() -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("the SIMT backend needs g++, which is not installed")
    sources = [ROOT / "csrc/simt" / name for name in CORE] + [HERE / "cases.cpp"]
    library = ctypes.CDLL(str(build_library(sources, ROOT / "build/simt_tests")))
    for name in [
        "case_name",
        "run_case",
        "product_sm80",
        "product_sm70",
        "sums",
        "banks",
        "launch_of",
    ]:
        getattr(library, name).restype = ctypes.c_char_p
    library.convert_half.restype = ctypes.c_float
    library.convert_to.restype = ctypes.c_uint16
    library.convert_to.argtypes = [ctypes.c_int, ctypes.c_float]
    return library
