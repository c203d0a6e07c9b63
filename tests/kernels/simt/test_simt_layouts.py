"""The fragment formulas of the emulator are those of CuTe's traits."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def cutlass_include() -> Path:
    spec = importlib.util.find_spec("cutlass_library")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("CuTe's headers are not here: pip install nvidia-cutlass")
    return Path(spec.submodule_search_locations[0]) / "source/include"


def cuda_include() -> Path:
    nvcc = shutil.which("nvcc")
    homes = [
        os.environ.get("CUDA_HOME"),
        "/usr/local/cuda",
        nvcc and Path(nvcc).resolve().parents[1],
    ]
    for home in homes:
        if home and (include := Path(home) / "include").joinpath("cuda_runtime_api.h").exists():
            return include.resolve()
    pytest.skip("CuTe's headers include CUDA's, which are not here: set CUDA_HOME")


def build(folder: Path, root: Path) -> Path:
    """Compile the comparison against the headers under ``root``."""
    if shutil.which("g++") is None:
        pytest.skip("the comparison is compiled by g++, which is not installed")
    cuda = cuda_include()
    include = [cutlass_include(), cuda, cuda / "cccl", root / "csrc"]
    program = folder / "cute_layouts"
    command = ["g++", "-std=c++17", "-O0", "-w", "-DMEGALITE_SIMT", *(f"-I{p}" for p in include)]
    subprocess.run([*command, str(HERE / "cute_layouts.cpp"), "-o", str(program)], check=True)
    return program


def test_fragments_and_ldmatrix_match_cute(tmp_path):
    result = subprocess.run([build(tmp_path, ROOT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_a_wrong_layout_would_be_seen(tmp_path):
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    header = tmp_path / "csrc/simt/fragments.h"
    right = "(t & 1) + (e & 2) + (t & 4)"
    assert right in header.read_text()
    header.write_text(header.read_text().replace(right, "(t & 1) + (e & 2) * 2 + (t & 4) / 2"))
    result = subprocess.run([build(tmp_path, tmp_path)], capture_output=True, text=True)
    assert result.returncode == 1
    assert "m8n8k4 TN" in result.stdout
