"""Attention's gradients where several blocks of a GPU add to the same ones."""

from dataclasses import replace

import pytest
import torch

from megalite.ops import RowIntervals
from megalite.ops import mask as masks
from tests.kernels.backends import SIMT_NAMES, assert_as_good, emulator, set_schedule
from tests.kernels.test_attention import STRUCTURES, Case, check, fitted, run


@pytest.mark.parametrize("name", SIMT_NAMES)
@pytest.mark.parametrize("more", [{}, {"has_bias": True, "dropout_p": 0.2}])
def test_heads_of_a_group_in_parts_are_as_exact_as_pytorch_in_any_order(name: str, more: dict):
    """So few tiles of keys that several blocks of sm_80 share each."""
    case, mask = fitted(name, Case(200, 200, 6, 1, 16, **more)), masks.causal(1, 200)
    check(name, case, mask)
    first = run(name, case, mask)
    set_schedule(name, 1)
    for a, b in zip(first, run(name, case, mask), strict=True):
        assert torch.equal(a, b)
    set_schedule(name, 0)


def diagonal(queries: int, keys: int, seeing: int) -> RowIntervals:
    """The first and the last rows see 50 keys before the diagonal, those between none."""
    row = torch.arange(queries)
    end = ((row + 1) * keys // queries)[None]
    is_idle = (row >= seeing) & (row < queries - seeing)
    start, end = (x.clamp(0).masked_fill(is_idle, 0).int() for x in (end - 50, end))
    return RowIntervals(start, end, keys)


@pytest.mark.skipif("simt_sm80" not in SIMT_NAMES, reason="the emulator is not built")
@pytest.mark.parametrize(
    ("case", "parts", "slots", "seeing"),
    [
        (Case(2048, 2048, 18, 18, 8), (1, 2), 2, 70),  # the three parts of a tile share two sums
        (Case(512, 4096, 32, 1, 8), (16, 1), 32, 10),
    ],
)
def test_tiles_that_are_divided_further_give_equal_bits_in_any_order(
    case: Case, parts: tuple[int, int], slots: int, seeing: int
):
    name, mask = "simt_sm80", diagonal(case.queries, case.keys, seeing)
    work = backward_schedule(case)
    assert (work["parts"], work["levels"], work["slots"]) == (*parts, slots)
    assert 0 < work["fine_tiles"] < case.keys // work["keys"]
    case = fitted(name, case)
    first = run(name, case, mask)
    set_schedule(name, 1)
    again = run_in_nan(name, case, mask)
    set_schedule(name, 0)
    exact = run("cpu", replace(case, dtype=torch.float32), mask)
    for a, b, other, truth in zip(first, again, run("cpu", case, mask), exact, strict=True):
        assert torch.equal(a, b)
        assert_as_good(a, other, truth.double(), 3.0)


def backward_schedule(case: Case) -> dict[str, int]:
    """How sm_80's backward kernel divides a case of one sequence."""
    emulator().set_architecture(80)
    size = 1, case.queries, case.keys, case.heads, case.groups, case.head_dim
    return emulator().attention_backward_schedule(*size)


@pytest.mark.parametrize("name", SIMT_NAMES)
@pytest.mark.parametrize("structure", ["packed causal", "padding", "cross", "one query"])
def test_every_element_is_written(name: str, structure: str):
    case, mask = STRUCTURES[structure]
    case = fitted(name, replace(case, has_bias=True))
    expected = run(name, case, mask)
    for a, b in zip(expected, run_in_nan(name, case, mask), strict=True):
        assert torch.equal(a, b)


def run_in_nan(name: str, case: Case, mask: RowIntervals) -> list[torch.Tensor]:
    """Results where memory that PyTorch hands out is full of NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        return run(name, case, mask)
    finally:
        torch.use_deterministic_algorithms(False)
