"""Kernels compile for real GPUs without spilling.

Attention takes minutes a file and architecture: here it is compiled once for sm_80, in half;
``python -m benchmarks.kernel_resources`` compiles and reports all.
"""

from pathlib import Path

import pytest

from benchmarks.toolchain import (
    ARCHITECTURES,
    ToolMissing,
    compile_source,
    kernels_of,
    sources,
)

EVERY = [
    pytest.param(source, architecture, id=f"{source.stem}-sm_{architecture}")
    for architecture in ARCHITECTURES
    for source in sources(architecture)
    if not source.stem.startswith("attention")
    or (source.stem == "attention_forward_sm80_half" and architecture == 80)
]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("source", "architecture"), EVERY)
def test_no_kernel_spills(source: Path, architecture: int):
    try:
        cubin = compile_source(source, architecture)
    except ToolMissing as missing:
        pytest.skip(str(missing))
    kernels = kernels_of(cubin)
    assert kernels
    assert [(k.name, k.spill_bytes) for k in kernels if k.spill_bytes] == []
    assert all(k.registers <= 255 and k.registers * k.threads <= 65536 for k in kernels)
