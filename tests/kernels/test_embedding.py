"""The embedding of tokens and its gradient on every backend, and what they move through memory."""

import pytest
import torch

from megalite.errors import ShapeError
from megalite.ops import embedding
from tests.kernels.backends import (
    SIMT_NAMES,
    assert_as_good,
    backend,
    device_of,
    emulator,
    needs_emulator,
    on_every_row_backend,
    set_schedule,
)

TYPES = [torch.float32, torch.bfloat16, torch.float16]
VOCABULARY = 23


def tokens_of(shape: tuple[int, ...]) -> torch.Tensor:
    """Half of them are one token, some tokens never come."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, 7, tokens)


def run(name: str, dtype: torch.dtype, width: int, slice_: tuple[int, int] = (0, VOCABULARY)):
    """[result], [gradient] on one backend, of a slice [first, last) of the vocabulary."""
    device, generator = device_of(name), torch.Generator().manual_seed(0)
    whole = torch.randn(VOCABULARY, width, generator=generator).to(dtype)
    weight = whole[slice(*slice_)].to(device).requires_grad_()
    tokens = tokens_of((3, 29))
    upstream = torch.randn(3, 29, width, generator=generator).to(dtype).to(device)
    with backend(name):
        out = embedding(weight, tokens.to(device), slice_[0], VOCABULARY)
        out.backward(upstream)
    return [out.detach().cpu()], [weight.grad.cpu()]


@on_every_row_backend
@pytest.mark.parametrize("slice_", [(0, VOCABULARY), (0, 8), (8, VOCABULARY), (5, 5)])
def test_rows_are_the_tables_and_sums_as_exact_as_pytorchs(name, slice_):
    for dtype in TYPES:
        for width in (5, 24, 1032):
            exact = run("reference", torch.float64, width, slice_)
            plain = run("reference", dtype, width, slice_)
            ours = run(name, dtype, width, slice_)
            assert torch.equal(ours[0][0], plain[0][0])
            assert ours[1][0].dtype == dtype
            assert_as_good(ours[1][0], plain[1][0], exact[1][0], 1.0)


@on_every_row_backend
def test_slices_of_the_vocabulary_add_up_to_all_of_it(name):
    whole = run(name, torch.float32, 12)
    parts = [run(name, torch.float32, 12, each) for each in ((0, 9), (9, 18), (18, VOCABULARY))]
    assert torch.equal(sum(part[0][0] for part in parts), whole[0][0])
    assert torch.equal(torch.cat([part[1][0] for part in parts]), whole[1][0])


@on_every_row_backend
def test_every_schedule_gives_the_same_bits(name):
    found = []
    for number in range(3):
        set_schedule(name, number)
        found.append(run(name, torch.bfloat16, 40)[1][0])
    assert all(torch.equal(found[0], other) for other in found[1:])


@on_every_row_backend
def test_views_and_unaligned_tensors_give_what_their_copies_give(name):
    device = device_of(name)
    whole = torch.randn(2 * VOCABULARY, 32, device=device).bfloat16()
    shifted = torch.randn(VOCABULARY * 16 + 1, device=device).bfloat16()[1:].view(-1, 16)
    tokens = tokens_of((6, 4)).to(device).t()
    for weight in (whole[::2, 16:], shifted):
        with backend(name):
            given, copied = (x.detach().requires_grad_() for x in (weight, weight.clone()))
            mine, theirs = embedding(given, tokens), embedding(copied, tokens.contiguous())
            mine.backward(mine.detach().expand_as(mine))
            theirs.backward(theirs.detach().clone())
        assert torch.equal(mine, theirs)
        assert torch.equal(given.grad, copied.grad)


@on_every_row_backend
def test_no_token_gives_no_gradient(name):
    weight = torch.ones(4, 8, device=device_of(name), requires_grad=True)
    with backend(name):
        out = embedding(weight, torch.zeros(2, 0, dtype=torch.int64, device=weight.device))
        out.sum().backward()
    assert out.shape == (2, 0, 8)
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("name", ["reference", "cpu", *SIMT_NAMES[:1]])
@pytest.mark.parametrize("token", [-1, 23])
def test_a_token_out_of_the_vocabulary_is_refused_by_name(name, token):
    """Also of a slice, which gives zeros for the tokens of others."""
    tokens = torch.tensor([[0, 1, token]])
    words = rf"embedding ids: must be in \[0, 23\), came {token} in place 2"
    with backend(name), pytest.raises((IndexError, RuntimeError), match=words):
        embedding(torch.ones(3, 4), tokens, 2, VOCABULARY)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"weight must be \[V, D\] and ids int64, came .*int32"):
        embedding(torch.ones(3, 4), torch.zeros(2, dtype=torch.int32))


@needs_emulator
def test_the_gradient_reads_each_row_once():
    rows, width, narrow = 40, 256, 2
    weight = torch.ones(VOCABULARY, width).bfloat16().requires_grad_()
    tokens, simt = tokens_of((rows,)), emulator()
    simt.reset_counters()
    with backend(SIMT_NAMES[0]):
        embedding(weight, tokens).sum().backward()
    counts = simt.counters()
    moved = {
        kernel: each["global_read_bytes"] + each["global_write_bytes"]
        for kernel, each in counts.items()
    }
    row, distinct = width * narrow, len(tokens.unique())
    ids = 8 * 32  # read by each thread of a row: from a cache
    assert moved.pop("embedding") == rows * (2 * row + ids)
    least = (rows + distinct) * row
    assert least <= moved.pop("embedding_backward") <= least + rows * 8 * 128 * 5
    assert moved == {}
