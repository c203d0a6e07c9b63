"""Attention's gradients where several blocks of a GPU add to the same ones."""

from dataclasses import replace

import pytest
import torch

from megalite.ops import mask as masks
from tests.kernels.backends import SIMT_NAMES, assert_as_good, set_schedule
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


@pytest.mark.parametrize("name", [name for name in SIMT_NAMES if name == "simt_sm80"])
def test_parts_that_wait_for_others_give_equal_bits_in_any_order(name: str):
    """Partial sums of dk and dv have less memory here than there are parts."""
    case, mask = fitted(name, Case(4096, 4096, 2, 1, 8)), masks.window(1, 4096, 16)
    first = run(name, case, mask)
    set_schedule(name, 1)
    again = run(name, case, mask)
    set_schedule(name, 0)
    exact = run("cpu", replace(case, dtype=torch.float32), mask)
    for a, b, other, truth in zip(first, again, run("cpu", case, mask), exact, strict=True):
        assert torch.equal(a, b)
        assert_as_good(a, other, truth.double(), 3.0)


@pytest.mark.parametrize("name", SIMT_NAMES)
@pytest.mark.parametrize("structure", ["packed causal", "padding", "cross", "one query"])
def test_every_element_is_written(name: str, structure: str):
    """Memory that PyTorch hands out is full of NaN here."""
    case, mask = STRUCTURES[structure]
    case = fitted(name, replace(case, has_bias=True))
    expected = run(name, case, mask)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        found = run(name, case, mask)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)
