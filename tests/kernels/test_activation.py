"""Activations with bias and gate on every backend, and what they move through memory."""

import itertools

import pytest
import torch

from megalite.errors import ShapeError
from megalite.ops import activation
from megalite.ops.activation import ACTIVATIONS
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


def run(name: str, dtype: torch.dtype, kind: str, shape: tuple[int, ...], parts: str):
    """[result], [gradients] on one backend; ``parts`` has g for a gate and b for biases."""
    device, generator = device_of(name), torch.Generator().manual_seed(0)
    shapes = {"up": shape}
    if "g" in parts:
        shapes["gate"] = shape
    if "b" in parts:
        shapes |= {f"{each}_bias": shape[-1:] for each in list(shapes)}
    leaves = {
        word: (3 * torch.randn(each, generator=generator)).to(dtype).to(device).requires_grad_()
        for word, each in shapes.items()
    }
    upstream = torch.randn(shape, generator=generator).to(dtype).to(device)
    with backend(name):
        out = activation(kind, **leaves)
        out.backward(upstream)
    return [out.detach().cpu()], [leaf.grad.cpu() for leaf in leaves.values()]


@on_every_row_backend
@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("parts", ["", "b", "g", "gb"])
def test_results_and_gradients_are_as_exact_as_pytorch(name, kind, parts):
    for dtype, width in itertools.product(TYPES, (5, 24, 40)):
        exact = run("reference", torch.float64, kind, (3, 29, width), parts)
        plain = run("reference", dtype, kind, (3, 29, width), parts)
        ours = run(name, dtype, kind, (3, 29, width), parts)
        for part, factor in ((0, 2.0), (1, 3.0)):
            for mine, theirs, truth in zip(ours[part], plain[part], exact[part], strict=True):
                assert mine.dtype == dtype
                assert_as_good(mine, theirs, truth, factor)


@on_every_row_backend
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_far_from_zero_nothing_overflows_and_nan_stays(name, kind):
    x = torch.tensor([[-1e30, -200.0, -90.0, -20.0, -6.0, 0.0, 1e-30, 6.0, 20.0, 200.0, 1e30]])
    exact = x.double().requires_grad_()
    ACTIVATIONS[kind](exact).sum().backward()
    leaf = x.to(device_of(name)).requires_grad_()
    with backend(name):
        out = activation(kind, leaf)
        out.sum().backward()
        bad = activation(kind, torch.full((1, 3), torch.nan, device=device_of(name)))
    torch.testing.assert_close(out.cpu(), ACTIVATIONS[kind](exact).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(leaf.grad.cpu(), exact.grad.float(), rtol=1e-5, atol=1e-6)
    assert bad.isnan().all()


@on_every_row_backend
def test_views_and_unaligned_tensors_give_what_their_copies_give(name):
    device = device_of(name)
    whole = torch.randn(4, 6, 32, device=device).bfloat16()
    shifted = torch.randn(24 * 16 + 1, device=device).bfloat16()[1:].view(4, 6, 16)
    for x in (whole[..., ::2], whole[..., 16:], shifted, whole[:, :, :16].transpose(0, 1)):
        with backend(name):
            mine, copied = activation("silu", x, x), activation("silu", x.clone(), x.clone())
        assert torch.equal(mine, copied)


@on_every_row_backend
@pytest.mark.parametrize("shape", [(2, 0, 16), (2, 3, 0)])
def test_nothing_gives_nothing(name, shape):
    _, gradients = run(name, torch.float32, "gelu", shape, "gb")
    assert all(torch.equal(g, torch.zeros_like(g)) for g in gradients)


@on_every_row_backend
def test_every_schedule_gives_the_same_bits(name):
    found = []
    for number in range(3):
        set_schedule(name, number)
        found.append(run(name, torch.bfloat16, "silu", (2, 133, 64), "gb"))
    for part in (0, 1):
        for each in zip(*(results[part] for results in found), strict=True):
            assert all(torch.equal(each[0], other) for other in each[1:])


@needs_emulator
@pytest.mark.parametrize("has_biases", [False, True])
def test_a_gated_activation_crosses_memory_once(has_biases):
    """Forward gate, up, result; backward its gradient, gate and up, and their gradients.

    Biases are read for each row, from caches; of their gradients each part is written and read.
    """
    rows, width, narrow = 64, 2048, 2
    element, vector = rows * width * narrow, width * narrow
    shapes = [(rows, width)] * 2 + [(width,)] * 2 * has_biases
    leaves = [torch.randn(each).bfloat16().requires_grad_() for each in shapes]
    simt, found = emulator(), []
    simt.reset_counters()
    with backend(SIMT_NAMES[0]):
        found = activation("silu", *leaves)
        found.backward(torch.ones_like(found))
    moved = {
        name: counts["global_read_bytes"] + counts["global_write_bytes"]
        for name, counts in simt.counters().items()
    }
    read = 2 * rows * vector if has_biases else 0
    assert moved.pop("activation") == 3 * element + read
    parts = 2 * 16 * width * 4 if has_biases else 0  # 8 blocks for each of two processors
    assert moved.pop("activation_backward") == 5 * element + read + parts
    assert moved == ({"column_sums": parts + 2 * vector} if has_biases else {})


@pytest.mark.parametrize(
    ("work", "says"),
    [
        (lambda x: activation("tanh", x), "must be one of relu, .* came tanh"),
        (lambda x: activation("relu", x, x[:1]), r"gate: must be torch.float32 \[2, 4\] as up is"),
        (lambda x: activation("relu", x, None, x), r"up_bias: must be torch.float32 \[4\]"),
        (lambda x: activation("relu", x, None, None, x[0]), "gate_bias: needs a gate"),
    ],
)
def test_what_does_not_fit_is_refused(work, says):
    with pytest.raises(ShapeError, match=says):
        work(torch.ones(2, 4))
