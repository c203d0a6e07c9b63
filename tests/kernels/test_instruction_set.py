"""The CPU backend runs the kernels that MEGALITE_CPU_ISA names, or refuses with what to do."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels.backends import needs_cpu

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ROTATE = """
import torch
from megalite import ops
with ops.backend("cpu"):
    ops.rope(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 1, 2), torch.ones(1, 1, 1, 2))
"""


def error_of(name: str) -> str:
    """The last line of what an operator says under MEGALITE_CPU_ISA=name; empty if it runs."""
    done = subprocess.run(
        [sys.executable, "-c", ROTATE],
        cwd=ROOT,
        env=os.environ | {"MEGALITE_CPU_ISA": name},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


@needs_cpu
def test_an_operator_refuses_an_instruction_set_that_does_not_exist():
    said = error_of("sse9")
    assert said.startswith(
        "RuntimeError: MEGALITE_CPU_ISA: must be avx512, avx2 or portable, came sse9; set one of"
    )
    assert "portable), or unset it" in said


@needs_cpu
@pytest.mark.parametrize("name", ["", "portable"])
def test_an_operator_runs_where_the_instruction_set_is_there(name: str):
    assert error_of(name) == ""


@needs_cpu
def test_an_operator_refuses_an_instruction_set_that_this_machine_lacks():
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    if platform.machine() == "x86_64" and not flags:
        pytest.skip("what this machine has is not known")
    for name, needs in (("avx512", "avx512dq"), ("avx2", "avx2")):
        said = error_of(name)
        assert bool(said) == (needs not in flags)
        if said:
            assert "must be an instruction set that this machine has (" in said


@pytest.fixture(scope="module")
def choose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The choice as a program, with stand-ins for the kernels of each instruction set."""
    if shutil.which("g++") is None:
        pytest.skip("the program is compiled by g++, which is not installed")
    program = tmp_path_factory.mktemp("choose") / "choose"
    sources = [HERE / "instruction_set.cpp", ROOT / "csrc/cpu/instruction_set.cpp"]
    command = ["g++", "-std=c++17", f"-I{ROOT / 'csrc'}", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@pytest.mark.parametrize(
    ("name", "machine", "says"),
    [
        ("", "avx512 avx2 portable", "avx512"),
        ("", "avx2 portable", "avx2"),
        ("portable", "avx2 portable", "portable"),
        (
            "avx512",
            "avx2 portable",
            "MEGALITE_CPU_ISA: must be an instruction set that this machine has (avx2, portable), "
            "came avx512; set one of these, or unset it for the first",
        ),
        (
            "AVX2",
            "avx2 portable",
            "MEGALITE_CPU_ISA: must be avx512, avx2 or portable, came AVX2; set one of them that "
            "this machine has (avx2, portable), or unset it for the first",
        ),
    ],
)
def test_the_choice_is_the_named_instruction_set_or_one_line(
    choose: Path, name: str, machine: str, says: str
):
    done = subprocess.run(
        [choose, name, *machine.split()], capture_output=True, text=True, check=True
    )
    assert done.stdout == says + "\n"
