"""The backward kernel's blocks fill a GPU, by their schedule on paper, and sum in little memory."""

import importlib

import pytest
import torch

from benchmarks.schedule import SHAPES, SMS, Schedule, Shape, mask_of, our_blocks, uses
from megalite.ops import attention
from tests.kernels.backends import backend, needs_emulator

pytestmark = needs_emulator
GIB = 2**30


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_causal_backward_pass_fills_a_gpu_as_flash_attention_2s_grid_does(shape: Shape):
    for sms in SMS.values():
        ours, theirs = uses(shape, mask_of("causal", shape.length), sms)
        assert ours >= theirs


def test_a_small_micro_batch_of_llama_fills_a_gpu():
    shape = Shape("LLaMA-7B", 2, 32, 32, 2048, 128)
    for sms in SMS.values():
        assert uses(shape, mask_of("causal", 2048), sms)[0] >= 0.95


GROUPED = [shape for shape in SHAPES if shape.length == 8192 and shape.groups < shape.heads]


@pytest.mark.parametrize("mask", ["full", "packed"])
@pytest.mark.parametrize("shape", GROUPED, ids=lambda shape: shape.name)
def test_grouped_heads_fill_a_gpu_as_flash_attention_2s_grid_does(shape: Shape, mask: str):
    """Up to half a percent: full tiles may be as many as whole waves of its grid have."""
    for sms in SMS.values():
        ours, theirs = uses(shape, mask_of(mask, shape.length), sms)
        assert ours >= theirs - 0.005


def test_packed_documents_fill_a_gpu():
    for shape in SHAPES:
        if shape.length == 8192:
            for sms in SMS.values():
                assert uses(shape, mask_of("packed", shape.length), sms)[0] >= 0.93


def test_each_pair_of_a_tile_is_in_one_part():
    for shape in SHAPES:
        s = Schedule.of(shape)
        for levels in {0, s.levels}:
            finest = s.parts << levels
            parts = [s.residue(part, levels) for part in range(s.parts * (levels + 1))]
            of_parts = [n for first, modulus in parts for n in range(first, finest, modulus)]
            assert sorted(of_parts) == list(range(finest))


@pytest.mark.parametrize("groups", [1, 2, 4, 8, 16, 32])
def test_sums_over_blocks_take_little_memory(groups: int):
    schedule = Schedule.of(Shape("", 1, 32, groups, 8192, 128))
    assert schedule.partial_bytes <= 0.15 * GIB
    assert schedule.scratch_bytes <= schedule.partial_bytes + 8 * 2**20


@pytest.mark.parametrize(
    ("shape", "mask"),
    [
        (Shape("grouped", 1, 4, 2, 300, 32), "causal"),
        (Shape("in parts", 1, 8, 1, 200, 16), "packed"),
        (Shape("wide", 2, 1, 1, 150, 128), "full"),
    ],
)
def test_the_schedule_has_the_steps_that_the_kernel_runs(shape: Shape, mask: str):
    emulator = importlib.import_module("megalite._simt")
    intervals = mask_of(mask, shape.length, 3)
    with backend("simt_sm80"):
        size = shape.batch, shape.length
        q, k = (
            torch.randn(*size, heads, shape.head_dim, dtype=torch.float16, requires_grad=True)
            for heads in (shape.heads, shape.groups)
        )
        repeated = type(intervals)(
            *(x.repeat(shape.batch, 1) for x in (intervals.start, intervals.end)), shape.length
        )
        out = attention(q, k, k, repeated)
        emulator.reset_counters()
        out.sum().backward()
    schedule = Schedule.of(shape)
    blocks = list(our_blocks(shape, intervals))
    counted = emulator.counters()["attention_backward_sm80"]
    padded_dim = -(-shape.head_dim // 32) * 32
    products_of_step = 5 * schedule.rows * schedule.keys * padded_dim // (16 * 8 * 16)
    assert counted["mma_m16n8k16"] == sum(block.steps for block in blocks) * products_of_step
    assert counted["blocks"] >= len(blocks)
    assert (schedule.parts > 1) == (shape.heads > shape.groups)
