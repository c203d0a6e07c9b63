"""What every backend takes alike: scales of any sign, views, memory that begins anywhere; and how
operators behave under PyTorch's transformations.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops import (
    AttentionOptions,
    RowIntervals,
    attention,
    cross_entropy,
    dropout,
    linear_cross_entropy,
    rope,
    rope_tables,
    token_log_probs,
)
from megalite.ops import mask as masks
from tests.kernels.backends import (
    attention_types,
    backend,
    device_of,
    on_every_backend,
    on_every_row_backend,
)

B, S, N, G, H = 2, 37, 4, 2, 16
Work = Callable[..., Tensor | tuple[Tensor, ...]]


def inputs(dtype: torch.dtype, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def queries(name: str) -> list[Tensor]:
    return inputs(attention_types(name)[0], (B, S, N, H), (B, S, G, H), (B, S, G, H))


def mask_on(name: str) -> RowIntervals:
    return masks.causal(B, S).to(device_of(name))


def results(name: str, work: Work, tensors: list[Tensor]) -> list[Tensor]:
    """What ``work`` gives, and the gradients of its inputs."""
    leaves = [tensor.detach().to(device_of(name)).requires_grad_() for tensor in tensors]
    return results_of(name, work, leaves, leaves)


def results_of(name: str, work: Work, leaves: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    with backend(name):
        made = work(*given)
        made = made if isinstance(made, tuple) else (made,)
        learned = [one for one in made if one.requires_grad]
        gradients = torch.autograd.grad(
            learned, leaves, [one.detach() * 0.5 + 1.0 for one in learned], allow_unused=True
        )
    return [one.detach() for one in (*made, *gradients) if one is not None]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@on_every_backend
@pytest.mark.parametrize("scale", [-0.3, 0.0])
def test_a_scale_of_any_sign_is_taken(name: str, scale: float):
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, mask_on(name), options=AttentionOptions(scale=scale))

    def of_the_sign(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole = AttentionOptions(scale=abs(scale) or 1.0)
        return attention(math.copysign(1.0, scale) * q, k, v, mask_on(name), options=whole)

    qkv = queries(name)
    found = results(name, attend, qkv)
    assert all(torch.isfinite(one).all() for one in found)
    if scale:
        assert equal(found, results(name, of_the_sign, qkv))
        return
    exact = results("reference", attend, [one.double() for one in qkv])
    for one, wanted in zip(found, exact, strict=True):
        assert torch.allclose(one.double().cpu(), wanted.cpu(), atol=4e-3, rtol=4e-3)
    assert not found[1].any()


@on_every_backend
@pytest.mark.parametrize("scale", [math.nan, math.inf])
def test_a_scale_that_is_no_number_is_refused(name: str, scale: float):
    with backend(name), pytest.raises(ShapeError, match="attention scale: must be a finite number"):
        attention(*queries(name), masks.causal(B, S), options=AttentionOptions(scale=scale))


def off_by_one(x: Tensor) -> Tensor:
    """The values of ``x`` in memory that begins an element behind a 16-byte boundary."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(x.shape).copy_(x)


def between(x: Tensor) -> Tensor:
    """The values of ``x`` as a view of memory in which other rows stand between its own."""
    memory = x.new_full((*x.shape[:-2], 2 * x.shape[-2], x.shape[-1]), math.nan)
    view = memory[..., ::2, :]
    return view.copy_(x)


def other_order(x: Tensor) -> Tensor:
    """The values of ``x`` in memory in which the dimensions before the last are turned around."""
    order = (*range(x.dim() - 2, -1, -1), x.dim() - 1)
    return x.permute(order).contiguous().permute(order)


ROPE = rope_tables(torch.arange(S, dtype=torch.int32).expand(B, S), H)
LABELS = torch.tensor([1, -100, 4, 10, 0, 5])
IDS = torch.arange(B)


def works(name: str) -> dict[str, tuple[Work, list[Tensor]]]:
    """Each operator, and inputs of it that may learn."""
    device = device_of(name)
    cos, sin = (table.to(device) for table in ROPE)
    labels, ids = LABELS.to(device), IDS.to(device)
    narrow = attention_types(name)[0]
    hidden, weight, logits = inputs(torch.float32, (6, H), (11, H), (6, 11))
    x, heads = inputs(narrow, (B, S, H), (B, S, N, H))
    return {
        "attention": (lambda q, k, v: attention(q, k, v, mask_on(name)), queries(name)),
        "rope": (lambda x: rope(x, cos, sin), [heads]),
        "rope in place": (lambda x: rope(1.0 * x, cos, sin, in_place=True), [heads]),
        "dropout": (lambda x: dropout(x, 0.3, 5, ids), [x]),
        "cross_entropy": (lambda x: cross_entropy(x, labels), [logits]),
        "linear_cross_entropy": (
            lambda x, w: linear_cross_entropy(x, w, labels),
            [hidden, weight],
        ),
        "token_log_probs": (lambda x, w: token_log_probs(x, w, labels), [hidden, weight]),
    }


OPERATORS = tuple(works("cpu"))


@on_every_row_backend
@pytest.mark.parametrize("layout", [off_by_one, between, other_order])
@pytest.mark.parametrize("operator", OPERATORS)
def test_where_tensors_lie_changes_no_bit(name: str, operator: str, layout: Callable):
    """Off 16 bytes, strided, or in another order of dimensions."""
    work, tensors = works(name)[operator]
    wanted = results(name, work, tensors)
    leaves = [tensor.detach().to(device_of(name)).requires_grad_() for tensor in tensors]
    given = [layout(leaf.detach()).requires_grad_() for leaf in leaves]
    assert equal(results_of(name, work, given, given), wanted)


@on_every_row_backend
@pytest.mark.parametrize("operator", OPERATORS)
def test_autocast_changes_nothing(name: str, operator: str):
    """Operators compute in the dtype of what they are given."""
    work, tensors = works(name)[operator]
    wanted = results(name, work, tensors)
    with torch.autocast(device_of(name), torch.bfloat16):
        assert equal(results(name, work, tensors), wanted)


@pytest.mark.parametrize("operator", OPERATORS)
def test_compiled_code_gives_the_same_bits(operator: str):
    """Traced and differentiated ahead, without generated code: that rounds as it likes."""
    work, tensors = works("cpu")[operator]
    wanted = results("cpu", lambda *given: _around(work, given), tensors)
    torch.compiler.reset()
    compiled = torch.compile(lambda *given: _around(work, given), backend="aot_eager")
    assert equal(results("cpu", compiled, tensors), wanted)


def _around(work: Work, given: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    made = work(*(2.0 * one for one in given))
    return tuple(3.0 * one for one in made) if isinstance(made, tuple) else 3.0 * made
