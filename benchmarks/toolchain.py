"""CUDA's compilers without a GPU: kernel sources to PTX and cubin, and what ptxas says of them.

sm_80 and later go through nvcc where it is installed; sm_70, which CUDA 13 no longer compiles, and
everything where there is no nvcc, through NVRTC and ptxas 12.9 from PyPI (requirements/dev.in).
Results are kept under build/cubins, by the text of all that they are made of.
"""

import ctypes
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "csrc/cuda"
CACHE = ROOT / "build/cubins"
ARCHITECTURES = (70, 80, 90, 100)
SMALL_BLOCKS = (
    86,
    89,
    120,
)  # blocks of 99 KiB of shared memory: kernels of their own beside sm80's


class ToolMissing(Exception):
    """A compiler is not installed; the message says which and how to get it."""


@dataclass(frozen=True)
class Kernel:
    """What ptxas made of one kernel.

    Attributes:
        symbol: mangled name.
        registers: a thread.
        spill_bytes: stores and loads of spilled registers a thread.
        threads: the most that a block may have.
    """

    symbol: str
    registers: int
    spill_bytes: int
    threads: int

    @property
    def name(self) -> str:
        """The readable name, without namespaces and parameters."""
        return demangled(self.symbol)


@cache
def demangled(symbol: str) -> str:
    """A kernel's name and template arguments: ``rope_kernel<half, 8>``."""
    text = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    text = re.sub(r"\bmegalite::(sm\d+::)?", "", text.strip()).removeprefix("void ")
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:i]
            break
    return re.sub(r"\((?:int|bool)\)", "", text)


def sources(architecture: int) -> list[Path]:
    """The kernel files of an architecture: all but those in the folder of another one."""
    others = {"binding", "sm70"} if architecture >= 80 else {"binding", "sm80", "sm86"}
    if architecture not in SMALL_BLOCKS:
        others.add("sm86")
    files = sorted(SOURCES.rglob("*.cu"))
    return [path for path in files if others.isdisjoint(path.relative_to(SOURCES).parts)]


def name_of(source: Path) -> str:
    """A kernel file's path under csrc/cuda, joined: ``attention-sm80-forward_half``."""
    return "-".join(source.relative_to(SOURCES).with_suffix("").parts)


def pypi_file(package: str, path: str) -> Path:
    """A file of one of NVIDIA's wheels.

    Raises:
        ToolMissing: the wheel is not installed.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        found = sorted(Path(folder).glob(path))
        if found:
            return found[0]
    raise ToolMissing(f"{path} is not here: pip install {package}")


@cache
def nvcc() -> Path | None:
    """nvcc, where it is installed."""
    found = shutil.which("nvcc")
    return Path(found).resolve() if found else None


def _make_ptx_by_nvcc(source: Path, architecture: int, ptx: Path) -> None:
    flags = ["-ptx", "-O3", "-std=c++17", f"-arch=compute_{architecture}", f"-I{ROOT / 'csrc'}"]
    run([str(nvcc()), *flags, str(source), "-o", str(ptx)])


def _make_ptx_by_nvrtc(source: Path, architecture: int, ptx: Path) -> None:
    library = pypi_file("nvidia-cuda-nvrtc-cu12==12.9.86", "cuda_nvrtc/lib/libnvrtc.so.12")
    nvrtc = ctypes.CDLL(str(library))
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    text = f'#include "{source.relative_to(ROOT / "csrc")}"\n'.encode()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, source.name.encode(), 0, None, None)
    flags = [f"-arch=compute_{architecture}", "-std=c++17", "-default-device"]
    flags += [f"-I{ROOT / 'csrc'}"]
    arguments = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
    failed = nvrtc.nvrtcCompileProgram(program, len(flags), arguments)

    def text_of(what: str) -> bytes:
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, buffer)
        return buffer.value

    if failed:
        raise RuntimeError(f"NVRTC on {source}:\n{text_of('ProgramLog').decode()}")
    ptx.write_bytes(text_of("PTX"))
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def uses_nvcc(architecture: int) -> bool:
    """Whether nvcc compiles for an architecture; CUDA 13's no longer does for sm_70."""
    return nvcc() is not None and architecture >= 75


@cache
def ptxas(architecture: int) -> Path:
    """The assembler for an architecture, of the same release as what made the PTX."""
    if uses_nvcc(architecture):
        return nvcc().parent / "ptxas"
    return pypi_file("nvidia-cuda-nvcc-cu12==12.9.86", "cuda_nvcc/bin/ptxas")


def run(command: list[str]) -> str:
    """Run a command; its standard output and error.

    Raises:
        RuntimeError: it failed; the message is what it said.
    """
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def _digest(source: Path, architecture: int) -> str:
    headers = [*sorted(SOURCES.rglob("*.cuh")), *sorted((ROOT / "csrc").glob("*.h"))]
    texts = [*headers, Path(__file__), source]
    made_of = hashlib.sha256(str(ptxas(architecture)).encode())
    for path in texts:
        made_of.update(path.read_bytes())
    return made_of.hexdigest()[:16]


def compile_source(source: Path, architecture: int) -> Path:
    """The cubin of one kernel file; its PTX and ptxas's words (.txt) lie beside it.

    Raises:
        ToolMissing: a compiler is not installed.
        RuntimeError: the source does not compile.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    stem = f"{name_of(source)}.sm_{architecture}.{_digest(source, architecture)}"
    cubin, ptx, log = (CACHE / f"{stem}.{end}" for end in ("cubin", "ptx", "txt"))
    if cubin.exists() and log.exists():
        return cubin
    make = _make_ptx_by_nvcc if uses_nvcc(architecture) else _make_ptx_by_nvrtc
    make(source, architecture, ptx)
    tool = str(ptxas(architecture))
    said = run([tool, "-v", f"-arch=sm_{architecture}", str(ptx), "-o", str(cubin)])
    log.write_text(said)
    return cubin


@cache
def torch_includes() -> list[str]:
    """Flags for PyTorch's headers, and for the one that only its CUDA builds come with."""
    made = CACHE / "include/c10/cuda/impl/cuda_cmake_macros.h"
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("#pragma once\n#define C10_CUDA_BUILD_SHARED_LIBS\n")
    folders = [*cpp_extension.include_paths(), sysconfig.get_path("include")]
    return [f"-I{folder}" for folder in folders] + [f"-I{CACHE / 'include'}"]


def compile_against_torch(source: Path, flags: list[str]) -> Path:
    """A file that includes PyTorch's headers, compiled for sm_80.

    Args:
        source: a CUDA file.
        flags: nvcc's; ``-cubin`` for device code only, ``-c`` for an object with host code.

    Raises:
        ToolMissing: nvcc is not installed.
        RuntimeError: the source does not compile.
    """
    if nvcc() is None:
        raise ToolMissing("nvcc is not here: install the CUDA toolkit")
    every = ["-arch=sm_80", "-O3", "-std=c++20", *torch_includes(), *flags]
    made_of = hashlib.sha256((source.read_text() + " ".join(every)).encode())
    result = CACHE / f"{source.stem}.{made_of.hexdigest()[:16]}.{'o' if '-c' in flags else 'cubin'}"
    # Of our own files the headers may have changed.
    if not result.exists() or source.is_relative_to(ROOT):
        run([str(nvcc()), *every, str(source), "-o", str(result)])
    return result


def nvdisasm(architecture: int) -> Path:
    """The disassembler for an architecture; PyPI's own releases don't know sm_70 any more.

    Raises:
        ToolMissing: it is not installed.
    """
    if architecture >= 75:
        return pypi_file("nvidia-cuda-nvdisasm==13.5.37", "cu13/bin/nvdisasm")
    triton = importlib.util.find_spec("triton")
    for folder in triton.submodule_search_locations if triton else ():
        found = Path(folder) / "backends/nvidia/bin/nvdisasm"
        if found.exists():
            return found
    raise ToolMissing("nvdisasm for sm_70 is not here: pip install triton==3.3.1")


def disassembled(cubin: Path, architecture: int) -> str:
    """The text of ``nvdisasm -c``.

    Raises:
        ToolMissing: the disassembler is not installed.
    """
    return run([str(nvdisasm(architecture)), "-c", str(cubin)])


def kernels_of(cubin: Path) -> list[Kernel]:
    """What ptxas said of each kernel of a compiled source."""
    threads = {
        symbol: int(most)
        for symbol, most in re.findall(
            r"\.entry (\w+)\([^)]*\)[^{]*?\.maxntid (\d+)", cubin.with_suffix(".ptx").read_text()
        )
    }
    said = cubin.with_suffix(".txt").read_text()
    found = []
    for part in said.split("Compiling entry function '")[1:]:
        symbol = part.split("'", 1)[0]
        spills = [int(n) for n in re.findall(r"(\d+) bytes spill (?:stores|loads)", part)]
        registers = int(re.search(r"Used (\d+) registers", part).group(1))
        found.append(Kernel(symbol, registers, sum(spills), threads[symbol]))
    return sorted(found, key=lambda kernel: kernel.name)
