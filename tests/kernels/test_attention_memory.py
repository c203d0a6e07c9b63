"""Attention where memory is not as the kernels like it: unaligned tensors, little shared memory."""

from dataclasses import replace

import pytest
import torch

from megalite.ops import attention
from megalite.ops import mask as masks
from tests.kernels.backends import (
    assert_as_good,
    attention_types,
    backend,
    device_of,
    needs_emulator,
    on_every_backend,
)
from tests.kernels.test_attention import STRUCTURES, check

SMALL_BLOCKS = "simt_sm86"  # 99 KiB of shared memory a block


@on_every_backend
def test_tensors_that_begin_off_a_vector_give_the_same_bits(name: str):
    shape = 1, 21, 2, 16
    results = []
    for first in (0, 1):
        generator = torch.Generator().manual_seed(0)
        leaves = []
        for _ in range(3):
            values = torch.randn(672, generator=generator).to(attention_types(name)[0])
            leaf = torch.cat((values[:first], values)).to(device_of(name))[first:].view(shape)
            leaves.append(leaf.requires_grad_())
        assert leaves[0].data_ptr() % 16 == first * leaves[0].element_size()
        with backend(name):
            out = attention(*leaves, masks.causal(1, 21).to(device_of(name)))
            out.backward(torch.ones_like(out))
        results.append([out.detach(), *(x.grad for x in leaves)])
    for aligned, shifted in zip(*results, strict=True):
        assert torch.equal(aligned, shifted)


@needs_emulator
@pytest.mark.parametrize("head_dim", [96, 128, 192])
@pytest.mark.parametrize("more", [{}, {"has_bias": True, "dropout_p": 0.2}])
@pytest.mark.parametrize("structure", ["packed causal", "causal behind a cache"])
def test_kernels_for_little_shared_memory_are_as_exact_as_pytorch(structure, head_dim, more):
    case, mask = STRUCTURES[structure]
    check(SMALL_BLOCKS, replace(case, head_dim=head_dim, **more), mask)


@needs_emulator
def test_the_widest_head_has_no_backward_pass_in_little_shared_memory():
    q = torch.randn(1, 5, 2, 256, dtype=torch.float16, requires_grad=True)
    with backend("simt_sm80"):
        expected = attention(q, q, q, masks.causal(1, 5)).detach()
    with backend(SMALL_BLOCKS):
        out = attention(q, q, q, masks.causal(1, 5))
        assert_as_good(out.detach(), expected, expected.double(), 2.0)
        with pytest.raises(RuntimeError, match="above 192 needs 145 KiB .* has 99, came .* 256"):
            out.sum().backward()
