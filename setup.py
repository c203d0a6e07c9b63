"""Build megalite's extensions against the PyTorch that is installed.

``megalite._index`` (data helpers) needs a C++ compiler only. ``megalite._kernels`` holds the
operators: the CPU backend always, the CUDA backend where nvcc and a CUDA build of PyTorch are found
(``MEGALITE_CUDA=1`` demands it, ``MEGALITE_CUDA=0`` leaves it out), for the GPUs of
``TORCH_CUDA_ARCH_LIST``, of this machine, or else those that users have. ``megalite._simt`` holds
the same CUDA sources, compiled by the host compiler to run on the CPU. Without a C++ compiler, or
with ``MEGALITE_COMPILE=0``, the package has no extensions, and PyTorch's own operators compute.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from setuptools import setup

try:
    import torch
    from pybind11.setup_helpers import Pybind11Extension
    from torch.utils import cpp_extension
except ImportError as error:
    MISSING = error.name
else:
    MISSING = None

CSRC = Path("csrc")
FAMILIES = {"sm70", "sm80", "sm86"}  # folders of attention kernels
DESCRIBES = {"dist_info", "egg_info", "sdist"}  # commands that compile nothing
LEAST = (7, 0)  # of the GPUs that have kernels
USUAL = ((7, 0), (8, 0), (9, 0), (10, 0))  # V100, A100, H100, B200
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


def compiles() -> bool:
    """Whether extensions are built: there is a compiler, or it is demanded; 0 leaves them out."""
    wish = os.environ.get("MEGALITE_COMPILE", "")
    compiler = os.environ.get("CXX") or "c++"
    if wish == "0" or (wish != "1" and shutil.which(compiler.split()[0]) is None):
        reason = "MEGALITE_COMPILE=0" if wish == "0" else f"there is no compiler {compiler}"
        sys.stderr.write(f"megalite: no compiled operators, PyTorch's own compute: {reason}\n")
        return False
    return True


def sources(pattern: str) -> list[str]:
    """Source files under csrc, in a fixed order."""
    return sorted(str(path) for path in CSRC.glob(pattern))


@dataclass(frozen=True)
class Toolkit:
    """CUDA's compiler.

    Attributes:
        home: folder of the toolkit.
        release: of nvcc, such as (13, 0).
        architectures: that it compiles for, such as (8, 0).
    """

    home: Path
    release: tuple[int, int]
    architectures: frozenset[tuple[int, int]]

    @classmethod
    def find(cls) -> "Toolkit | None":
        """The one that CUDA_HOME names, else that of the nvcc on the PATH, else /usr/local/cuda."""
        home = cuda_home(os.environ)
        version = said(home / "bin/nvcc", "--version") if home else ""
        release = re.search(r"release (\d+)\.(\d+)", version)
        if home is None or release is None:
            return None
        listed = said(home / "bin/nvcc", "--list-gpu-arch")
        known = {(int(n[:-1]), int(n[-1])) for n in re.findall(r"compute_(\d+)\b", listed)}
        return cls(home, (int(release[1]), int(release[2])), frozenset(known))


def said(*command: object) -> str:
    """What a program prints, on both streams; nothing where it can't be started."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout + done.stderr


def cuda_home(environment: Mapping[str, str]) -> Path | None:
    """The toolkit's folder. An nvcc on the PATH may be a script or a link: it says itself where.

    PyTorch takes the folder above the one that nvcc is found in, and then finds no library there.
    """
    if named := environment.get("CUDA_HOME") or environment.get("CUDA_PATH"):
        return Path(named)
    nvcc = shutil.which("nvcc", path=environment.get("PATH"))
    if nvcc is None:
        usual = Path("/usr/local/cuda")
        return usual if usual.exists() else None
    top = re.search(r"^#\$ TOP=(.*)$", said(nvcc, "--dryrun", "none.cu"), re.MULTILINE)
    return Path(top[1]).resolve() if top else Path(nvcc).resolve().parents[1]


def architectures(
    wish: str, present: Iterable[tuple[int, int]], known: Collection[tuple[int, int]]
) -> tuple[str, list[tuple[int, int]]]:
    """What to compile for: as asked, or for the GPUs that are here, or for those that users have.

    Args:
        wish: TORCH_CUDA_ARCH_LIST; empty: not asked.
        present: compute capabilities of this machine's GPUs.
        known: those that nvcc compiles for.

    Returns:
        PyTorch's list, its last with PTX for newer GPUs unless it was asked; and its capabilities.

    Raises:
        SystemExit: a GPU that is here, or one that is asked for, can't be compiled for.
    """
    numbers = re.findall(r"(\d+)\.(\d+)", wish) if wish else []
    asked = sorted({(int(major), int(minor)) for major, minor in numbers})
    newest = max(known)  # a newer GPU translates its PTX
    wanted = asked or sorted({min(each, newest) for each in present if each >= LEAST})
    if missing := [each for each in wanted if each not in known]:
        raise SystemExit(
            f"nvcc compiles for {shown(known)}, not for {shown(missing)}; CUDA 12.9 is the last "
            "that knows 7.0: install another, or set TORCH_CUDA_ARCH_LIST, or MEGALITE_CUDA=0"
        )
    if wish:
        return wish, asked or sorted(known)  # names such as Ampere: all kernels
    wanted = wanted or [each for each in USUAL if each in known]
    return ";".join(map("{0[0]}.{0[1]}".format, wanted)) + "+PTX", wanted


def shown(capabilities: Iterable[tuple[int, int]]) -> str:
    """Compute capabilities as text."""
    return ", ".join(f"{major}.{minor}" for major, minor in sorted(capabilities))


def families(capabilities: Iterable[tuple[int, int]]) -> set[str]:
    """The folders of attention kernels that these GPUs run.

    sm86 has smaller tiles, for GPUs whose blocks have 99 KiB of shared memory (8.6, 8.9, 12.x).
    """
    found = set()
    for major, minor in capabilities:
        found.add("sm80" if major >= 8 else "sm70")
        if major == 12 or (major, minor) in ((8, 6), (8, 9)):
            found.add("sm86")
    return found


def cuda_toolkit() -> Toolkit | None:
    """The toolkit to build the CUDA backend with, or None to leave it out.

    Raises:
        SystemExit: it is demanded and can't be built.
    """
    wish, nvcc, theirs = os.environ.get("MEGALITE_CUDA", ""), Toolkit.find(), torch.version.cuda
    if wish == "0" or (wish != "1" and (nvcc is None or theirs is None)):
        return None
    if nvcc is not None and theirs is not None and nvcc.release[0] == int(theirs.split(".")[0]):
        return nvcc
    came = f"{shown([nvcc.release])} in {nvcc.home}" if nvcc else "none"
    need = (
        "nvcc and a CUDA build of PyTorch must be there, of one major version of CUDA; came "
        f"nvcc {came} and torch {torch.__version__}"
    )
    if wish == "1":
        raise SystemExit(f"MEGALITE_CUDA=1: {need}; install both, or unset it")
    sys.stderr.write(f"megalite: no CUDA backend: {need}\n")
    return None


def cuda_extension(toolkit: Toolkit, files: list[str], include: list[str]):
    """Both backends, the CUDA sources for what is asked for or present."""
    wish = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    text, wanted = architectures(wish, present, toolkit.architectures)
    os.environ["TORCH_CUDA_ARCH_LIST"] = text
    os.environ["CUDA_HOME"] = cpp_extension.CUDA_HOME = str(toolkit.home)
    chosen = families(wanted)
    sys.stderr.write(f"megalite: CUDA backend for {text}, by nvcc of {toolkit.home}\n")
    left_out = FAMILIES - chosen
    kernels = [f for f in sources("cuda/**/*.cu") if left_out.isdisjoint(Path(f).parts)]
    return cpp_extension.CUDAExtension(
        "megalite._kernels",
        files + kernels,
        include_dirs=include,
        define_macros=[(f"MEGALITE_{name.upper()}", None) for name in sorted(chosen)],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3"]},
    )


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
        define_macros=[("MEGALITE_SIMT", None)]
        + [(f"MEGALITE_{name.upper()}", None) for name in sorted(FAMILIES)],
        extra_compile_args=["-O2", "-Wno-psabi", "-Wno-attributes"],
    )


def extensions() -> list:
    """Everything that can be built here."""
    files = ["csrc/schema.cpp", "csrc/tape.cpp", *sources("cpu/**/*.cpp")]
    include = [str(CSRC.resolve())]
    if (toolkit := cuda_toolkit()) is not None:
        kernels = cuda_extension(toolkit, files, include)
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


def main() -> None:
    """Build what can be built."""
    if not compiles() or (MISSING is not None and DESCRIBES.intersection(sys.argv)):
        setup()
    elif MISSING is not None:
        raise SystemExit(
            f"megalite: {MISSING} must be installed to compile the operators: install it first, "
            "or set MEGALITE_COMPILE=0 to go without them"
        )
    else:
        build_ext = cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)
        setup(ext_modules=extensions(), cmdclass={"build_ext": build_ext})


if __name__ == "__main__":
    main()
