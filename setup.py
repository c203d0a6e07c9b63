"""Build megalite's extensions against the PyTorch that is installed.

``megalite._index`` (data helpers) needs a C++ compiler only. ``megalite._kernels`` holds the
operators: the CPU backend always, the CUDA backend where nvcc and a CUDA build of PyTorch are found
(``MEGALITE_CUDA=1`` demands it, ``MEGALITE_CUDA=0`` leaves it out). ``megalite._simt`` holds the
same CUDA sources, compiled by the host compiler to run on the CPU.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from torch.utils import cpp_extension

CSRC = Path("csrc")
# OpenMP without its library at link time: the symbols are those of the runtime that PyTorch loads,
# so there is one pool of threads. No -std: PyTorch's BuildExtension adds the one that its release's
# headers need, C++17 or C++20; csrc is valid in both.
CXX_FLAGS = [
    "-O3",
    "-ffp-contract=fast",
    "-fopenmp",
    "-fvisibility=hidden",
    "-Wno-psabi",
]


def sources(pattern: str) -> list[str]:
    """Source files under csrc, in a fixed order."""
    return sorted(str(path) for path in CSRC.glob(pattern))


def toolkit() -> tuple[int, int] | None:
    """The version of nvcc, or None where there is none."""
    if cpp_extension.CUDA_HOME is None:
        return None
    nvcc = [Path(cpp_extension.CUDA_HOME) / "bin/nvcc", "--version"]
    try:
        said = subprocess.run(nvcc, capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else None


def cuda_architectures(release: tuple[int, int]) -> str:
    """What the toolkit compiles for, of the GPUs that have kernels: V100, A100, H100, B200."""
    wanted = {"7.0": release < (13, 0), "8.0": True, "9.0": True, "10.0": release >= (12, 8)}
    return ";".join(name for name, is_known in wanted.items() if is_known)


def cuda_release() -> tuple[int, int] | None:
    """The toolkit to build the CUDA backend with, or None to leave it out.

    Raises:
        SystemExit: it is demanded and can't be built.
    """
    wish, nvcc, theirs = os.environ.get("MEGALITE_CUDA", ""), toolkit(), torch.version.cuda
    if wish == "0" or (wish != "1" and None in (nvcc, theirs)):
        return None
    if None not in (nvcc, theirs) and nvcc[0] == int(theirs.split(".")[0]):
        return nvcc
    need = (
        "nvcc and a CUDA build of PyTorch must be there, of one major version of CUDA; came "
        f"nvcc {'.'.join(map(str, nvcc)) if nvcc else 'none'} and torch {torch.__version__}"
    )
    if wish == "1":
        raise SystemExit(f"MEGALITE_CUDA=1: {need}; install both, or unset it")
    sys.stderr.write(f"megalite: no CUDA backend: {need}\n")
    return None


def simt_extension(include: list[str]):
    """The CUDA sources for the emulator, each compiled as C++ through a file that includes it."""
    folder = Path("build/simt")
    wrappers = []
    for source in sources("cuda/**/*.cu"):
        included = Path(source).relative_to(CSRC)
        wrapper = folder / included.with_suffix(".cpp")
        wrapper.parent.mkdir(parents=True, exist_ok=True)
        text = f'#include "{included}"\n'
        if not wrapper.exists() or wrapper.read_text() != text:
            wrapper.write_text(text)
        wrappers.append(str(wrapper))
    return cpp_extension.CppExtension(
        "megalite._simt",
        sources("simt/*.cpp") + wrappers,
        include_dirs=include,
        define_macros=[("MEGALITE_SIMT", None)],
        extra_compile_args=["-O2", "-Wno-psabi", "-Wno-attributes"],
    )


def extensions() -> list:
    """Everything that can be built here."""
    files = ["csrc/schema.cpp", *sources("cpu/**/*.cpp")]
    include = [str(CSRC.resolve())]
    if (release := cuda_release()) is not None:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", cuda_architectures(release))
        kernels = cpp_extension.CUDAExtension(
            "megalite._kernels",
            files + sources("cuda/**/*.cu"),
            include_dirs=include,
            extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3"]},
        )
    else:
        kernels = cpp_extension.CppExtension(
            "megalite._kernels", files, include_dirs=include, extra_compile_args=CXX_FLAGS
        )
    built = [kernels, simt_extension(include)]
    if sources("index/*.cpp"):
        built.append(
            Pybind11Extension(
                "megalite._index", sources("index/*.cpp"), cxx_std=17, include_dirs=include
            )
        )
    return built


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)},
)
