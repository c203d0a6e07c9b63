"""The Python module of the emulator: settings, counters and its error."""

import ctypes
import importlib.util
import sysconfig
from types import ModuleType

import numpy as np
import pytest

from tests.kernels.simt.library import CORE, HERE, ROOT, build_library


@pytest.fixture(scope="module")
def module_and_cases() -> tuple[ModuleType, ctypes.CDLL]:
    pybind11 = pytest.importorskip("pybind11", reason="the module's headers: pip install pybind11")
    include = [pybind11.get_include(), sysconfig.get_paths()["include"]]
    names = [*CORE, "binding.cpp"]
    sources = [ROOT / "csrc/simt" / name for name in names] + [HERE / "cases.cpp"]
    path = build_library(sources, ROOT / "build/simt_tests", include)
    spec = importlib.util.spec_from_file_location("_simt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cases = ctypes.CDLL(str(path))
    cases.sums.restype = ctypes.c_char_p
    return module, cases


def test_counters_are_kept_by_kernel_until_reset(module_and_cases):
    simt, cases = module_and_cases
    x, y = np.ones(512, np.float32), np.zeros(2, np.float32)
    simt.reset_counters()
    for seed in range(3):
        found = cases.sums(ctypes.c_uint64(seed), *(ctypes.c_void_p(v.ctypes.data) for v in (x, y)))
        assert found is None, found.decode()
    assert y.tolist() == [512.0, 512.0]
    assert list(simt.counters()) == ["sums"]
    counters = simt.counters()["sums"]
    assert counters["launches"] == 3
    assert counters["barriers"] == 3 * 2
    assert counters["shuffles"] == 3 * 16 * 5
    assert counters["global_read_bytes"] == 3 * 512 * 4
    simt.reset_counters()
    assert simt.counters() == {}


def test_its_error_is_a_runtime_error(module_and_cases):
    assert issubclass(module_and_cases[0].KernelError, RuntimeError)
