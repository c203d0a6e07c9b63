"""Kernels compile for real GPUs without spilling, and each of them runs on the emulator.

What includes PyTorch's headers is compiled by ``python -m benchmarks.kernel_resources --binding``;
without ``--binding`` it compiles what is left out here: files in half that newer GPUs share with
sm_80, and differ from those in bfloat16 by the kind of a product alone; and sm_90's files of rows,
which are compiled for sm_80 and sm_100 on either side of it.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks.kernel_resources import launch_all
from benchmarks.toolchain import (
    ARCHITECTURES,
    ToolMissing,
    compile_source,
    kernels_of,
    name_of,
    sources,
)

EVERY = [
    pytest.param(source, architecture, id=f"{name_of(source)}-sm_{architecture}")
    for architecture in ARCHITECTURES
    for source in sources(architecture)
    if architecture <= 80 or not source.stem.endswith("_half")
    if architecture != 90 or source.parent.name != "rows"
]
# sm_80's files in other GPUs' code are hardly others; those for blocks of 99 KiB are only here.
EVERY += [
    pytest.param(source, architecture, id=f"{name_of(source)}-sm_{architecture}")
    for architecture, dtype in ((86, "bfloat16"), (120, "half"))
    for source in sources(architecture)
    if source.parent.name == "sm86" and source.stem.endswith(dtype)
]


Cubins = dict[tuple[Path, int], Future[Path]]


@pytest.fixture(scope="module")
def cubins(request: pytest.FixtureRequest) -> Iterator[Cubins]:
    """What the tests of this run compile, two at a time."""
    mine = (item for item in request.session.items if item.path == request.path)
    wanted = [item.callspec.params for item in mine]
    pool = ThreadPoolExecutor(2)
    yield {(p["source"], p["architecture"]): pool.submit(compile_source, **p) for p in wanted}
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def launched() -> dict[str, tuple[int, int]]:
    """What the emulator has run, by mangled name."""
    return launch_all()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("source", "architecture"), EVERY)
def test_no_kernel_spills(source: Path, architecture: int, cubins: Cubins, launched):
    try:
        cubin = cubins[source, architecture].result()
    except ToolMissing as missing:
        pytest.skip(str(missing))
    kernels = kernels_of(cubin)
    assert kernels
    assert [(k.name, k.spill_bytes) for k in kernels if k.spill_bytes] == []
    assert [k.name for k in kernels if k.symbol not in launched] == []
    assert all(k.registers <= 255 and k.registers * k.threads <= 65536 for k in kernels)
