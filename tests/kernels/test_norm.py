"""Norms with residual addition and dropout on every backend, and what they move through memory."""

from dataclasses import dataclass

import pytest
import torch

from megalite.ops import Drops, NormOptions, Update, add_norm
from tests.kernels.backends import (
    SIMT_NAMES,
    assert_as_good,
    backend,
    device_of,
    emulator,
    needs_cpu,
    needs_emulator,
    on_every_row_backend,
    set_schedule,
)

RMS, LAYER, GEMMA = NormOptions(), NormOptions(centred=True), NormOptions(weight_offset=1.0)
TYPES = [torch.float32, torch.bfloat16, torch.float16]
# A part of a warp, odd, a block with idle lanes, two vectors a thread, longer than a block holds.
WIDTHS = [8, 21, 128, 1000, 4608]


def leaves_of(dtype: torch.dtype, shape: tuple[int, ...], device: str) -> list[torch.Tensor]:
    """x, update, weight, bias: large means, as a residual stream has."""
    generator = torch.Generator().manual_seed(0)
    shapes = shape, shape, shape[-1:], shape[-1:]
    made = [torch.randn(each, generator=generator) for each in shapes]
    made[0] += 3.0
    return [x.to(dtype).to(device).requires_grad_() for x in made]


@dataclass(frozen=True)
class Case:
    """What is done: ``p`` is dropout's, ``uses_sum`` whether the sum has a gradient of its own."""

    options: NormOptions
    scale: float = 1.0
    p: float = 0.0
    has_update: bool = True
    uses_sum: bool = True


def run(name: str, dtype: torch.dtype, shape: tuple[int, ...], case: Case):
    """[sum, normal], [gradients] on one backend; upstream fixed random tensors."""
    options = case.options
    device = device_of(name)
    x, value, weight, bias = leaves_of(dtype, shape, device)
    used = [x, value, weight, bias] if case.has_update else [x, weight, bias]
    if not options.centred:
        used.pop()
    samples = torch.tensor([3, 2**33 + 1])[: shape[0]].to(device)
    drops = Drops(case.p, 99, samples, 4) if case.p else None
    update = Update(value, case.scale, drops) if case.has_update else None
    generator = torch.Generator().manual_seed(2)
    upstream = [torch.randn(shape, generator=generator).to(dtype).to(device) for _ in range(2)]
    with backend(name):
        results = add_norm(x, update, weight, bias if options.centred else None, options)
        if case.uses_sum:
            torch.autograd.backward(results, upstream)
        else:
            results[1].backward(upstream[1])
    return [r.detach().cpu() for r in results], [leaf.grad.cpu() for leaf in used]


def check(name, dtype, shape, options, **more) -> None:
    case = Case(options, **more)
    exact = run("reference", torch.float64, shape, case)
    plain = run("reference", dtype, shape, case)
    ours = run(name, dtype, shape, case)
    for part, factor in ((0, 2.0), (1, 3.0)):
        for mine, theirs, truth in zip(ours[part], plain[part], exact[part], strict=True):
            assert mine.dtype == dtype
            assert_as_good(mine, theirs, truth, factor)


@on_every_row_backend
@pytest.mark.parametrize("options", [RMS, LAYER])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_sum_and_its_norm_are_as_exact_as_pytorch(name, width, options):
    for dtype in TYPES if width != 4608 else TYPES[:2]:
        check(name, dtype, (2, 3, width), options)


@on_every_row_backend
@pytest.mark.parametrize("options", [GEMMA, LAYER])
@pytest.mark.parametrize("width", [21, 64])
def test_dropout_and_scale_of_the_residual_are_as_exact_as_pytorch(name, width, options):
    check(name, torch.float32, (2, 9, width), options, scale=1.7, p=0.3)
    check(name, torch.bfloat16, (2, 9, width), options, p=0.3)
    check(name, torch.bfloat16, (2, 9, width), options, scale=1.7, uses_sum=False)


@on_every_row_backend
@pytest.mark.parametrize("options", [RMS, LAYER])
def test_a_norm_alone_gives_the_stream_back(name, options):
    for width in (20, 40):
        check(name, torch.float32, (70, 5, width), options, has_update=False)
        check(name, torch.bfloat16, (70, 5, width), options, has_update=False, uses_sum=False)


@on_every_row_backend
def test_rows_longer_than_the_threads_registers_are_read_again(name):
    for dtype, width in ((torch.float32, 8200), (torch.bfloat16, 16392), (torch.bfloat16, 12288)):
        check(name, dtype, (1, 5, width), LAYER)


@on_every_row_backend
def test_views_and_unaligned_tensors_give_what_their_copies_give(name):
    device = device_of(name)
    whole = torch.randn(3, 5, 2, 16, device=device).bfloat16()
    shifted = torch.randn(3 * 5 * 16 + 1, device=device).bfloat16()[1:].view(3, 5, 16)
    weight = torch.randn(17, device=device).bfloat16()[1:]
    views = [whole[:, :, 1], whole.transpose(0, 1)[:3, :, 0].expand(3, 3, 16), shifted]
    for x in views:
        with backend(name):
            mine, copied = (add_norm(y, Update(y), weight) for y in (x, x.clone()))
            for each in zip(mine, copied, strict=True):
                assert torch.equal(*each)


@on_every_row_backend
def test_no_row_gives_no_gradient(name):
    _, gradients = run(name, torch.float32, (2, 0, 16), Case(LAYER))
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@on_every_row_backend
@pytest.mark.parametrize("width", [16, 1024])
def test_every_schedule_gives_the_same_bits(name, width):
    found = []
    for number in range(3):
        set_schedule(name, number)
        found.append(run(name, torch.bfloat16, (2, 33, width), Case(LAYER, p=0.2)))
    for part in (0, 1):
        for each in zip(*(results[part] for results in found), strict=True):
            assert all(torch.equal(each[0], other) for other in each[1:])


@needs_cpu
def test_threads_do_not_change_the_bits_on_a_cpu():
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(run("cpu", torch.float32, (2, 165, 24), Case(LAYER)))
    finally:
        torch.set_num_threads(threads)
    for part in (0, 1):
        assert all(torch.equal(a, b) for a, b in zip(found[0][part], found[1][part], strict=True))


def moved(work) -> dict[str, int]:
    """Bytes that each kernel reads and writes in global memory."""
    simt = emulator()
    simt.reset_counters()
    with backend(SIMT_NAMES[0]):
        work()
    return {
        kernel: counts["global_read_bytes"] + counts["global_write_bytes"]
        for kernel, counts in simt.counters().items()
    }


@needs_emulator
@pytest.mark.parametrize("options", [RMS, LAYER])
def test_a_row_crosses_memory_once(options):
    """Forward x, update, sum, norm; backward both gradients, the sum, the gradient by it.

    The weights are read for each row: from an SM's first cache, which holds their few KiB. The
    least possible counts them once.
    """
    rows, width, narrow = 256, 1024, 2
    weights = 2 if options.centred else 1
    element = rows * width * narrow
    vectors = weights * width * narrow
    cached = (rows - 1) * vectors
    statistics = weights * rows * 4
    results = []
    leaves = leaves_of(torch.bfloat16, (1, rows, width), "cpu")
    x, value, weight, bias = leaves

    def forward():
        last = bias if options.centred else None
        results[:] = add_norm(x, Update(value), weight, last, options)

    assert moved(forward) == {"add_norm": 4 * element + vectors + cached + statistics}
    least = 4 * element + vectors
    assert 4 * element + vectors + statistics <= 1.02 * least

    found = moved(lambda: torch.autograd.backward(results, [torch.ones_like(x)] * 2))
    blocks = 2 * 4  # of the emulator's two processors
    parts = weights * blocks * width * 4
    read = 2 * rows * width * narrow  # the weight, for both passes over a row
    lanes = width // 8
    assert found["add_norm_backward"] == 4 * element + parts + read + statistics * lanes
    assert found["column_sums"] == parts + vectors
    # On an A100: 4 blocks an SM, and the 2 x 2048 rows of a micro-batch.
    many = 4096 * width
    least = many * 4 * narrow
    assert least + 2 * weights * 4 * 108 * width * 4 <= 1.25 * least
