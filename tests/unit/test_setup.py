"""What the build says where it can't do what is asked."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CUDA_12 = {(7, 0), (7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)}
CUDA_13 = CUDA_12 - {(7, 0)}


def loaded(name: str) -> ModuleType:
    """A module beside the package."""
    spec = importlib.util.spec_from_file_location(f"megalite_{name}", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """The functions of setup.py."""
    return loaded("setup")


def test_a_build_asks_for_pytorch_as_the_package_does_where_there_is_none(monkeypatch, tmp_path):
    backend = loaded("build_backend")
    (required,) = (name for name in PROJECT["dependencies"] if re.match(r"torch\b", name))
    monkeypatch.setenv("MEGALITE_COMPILE", "1")
    assert backend.get_requires_for_build_wheel() == []
    packages = set(backend.installed())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in packages])
    monkeypatch.setattr(sysconfig, "get_path", lambda _name: str(tmp_path))
    assert backend.get_requires_for_build_wheel() == [required]
    monkeypatch.setenv("MEGALITE_COMPILE", "0")
    assert backend.get_requires_for_build_wheel() == []


def test_a_demand_for_cuda_that_cannot_be_met_is_one_line():
    if torch.version.cuda is not None:
        pytest.skip("a CUDA build of PyTorch may meet the demand")
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=ROOT,
        env=os.environ | {"MEGALITE_CUDA": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("MEGALITE_CUDA=1: nvcc and a CUDA build of PyTorch must be there")
    assert f"torch {torch.__version__}; install both, or unset it" in line


@pytest.mark.parametrize(
    ("wish", "present", "known", "text"),
    [
        ("", [], CUDA_12, "7.0;8.0;9.0;10.0+PTX"),
        ("", [], CUDA_13, "8.0;9.0;10.0+PTX"),
        ("", [(8, 6), (8, 6)], CUDA_13, "8.6+PTX"),
        ("", [(6, 1), (8, 0)], CUDA_13, "8.0+PTX"),
        ("", [(13, 0)], CUDA_13, "12.0+PTX"),  # a GPU after this toolkit
        ("8.0;9.0", [(8, 6)], CUDA_13, "8.0;9.0"),
    ],
)
def test_the_build_is_for_what_is_asked_or_present(build, wish, present, known, text):
    assert build.architectures(wish, present, known)[0] == text


def test_a_gpu_that_nvcc_no_longer_knows_is_named(build):
    for wish, present in (("7.0;8.0", []), ("", [(7, 0)])):
        with pytest.raises(SystemExit, match=r"not for 7\.0; CUDA 12\.9 is the last"):
            build.architectures(wish, present, CUDA_13)


def test_only_kernels_that_the_gpus_run_are_compiled(build):
    assert build.families([(7, 0)]) == {"sm70"}
    assert build.families([(8, 0), (9, 0), (10, 0)]) == {"sm80"}
    assert build.families([(7, 5), (8, 6)]) == {"sm70", "sm80", "sm86"}
    assert build.families([(12, 0)]) == {"sm80", "sm86"}
    folders = {path.name for path in (ROOT / "csrc/cuda/attention").iterdir() if path.is_dir()}
    assert folders == build.FAMILIES


def test_a_script_on_the_path_that_calls_nvcc_is_asked_where_the_toolkit_is(build, tmp_path):
    """As where the toolkit's folder is not on the PATH; such an nvcc prints what this one does."""
    real = tmp_path / "opt/cuda-13.0"
    (real / "bin").mkdir(parents=True)
    wrapper = tmp_path / "bin/nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho '#$ TOP={real}/bin/..' >&2\n")
    wrapper.chmod(0o755)
    path = {"PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    assert build.cuda_home(path) == real
    assert build.cuda_home(path | {"CUDA_HOME": "/elsewhere"}) == Path("/elsewhere")
    wrapper.write_text("#!/bin/sh\n")  # says nothing: the folder above it, as PyTorch has it
    assert build.cuda_home(path) == tmp_path


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
def test_the_toolkit_that_is_here_is_found(build):
    toolkit = build.Toolkit.find()
    assert (toolkit.home / "bin/nvcc").exists()
    assert toolkit.release >= (11, 0)
    assert (8, 0) in toolkit.architectures
