"""Head and loss in one: the logits exist a chunk of rows at a time.

The gradients are made together with the loss, while a chunk's logits are at hand, and kept until
the backward pass scales them: logits are computed once.

Source: the chunking of Hsu et al. 2024, arXiv:2410.10989, section 3.
"""

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.backends import chosen
from megalite.ops.cross_entropy import add_largest, logit_gradient, row_loss
from megalite.ops.precision import as_given, wide
from megalite.ops.vocabulary import (
    LossOptions,
    RowStatistics,
    cap_slope,
    check_labels,
    labelled_rows,
    largest_places,
    row_statistics,
    scale_and_cap,
)

CHUNK_ELEMENTS = 7 << 21  # logits at a time: 56 MiB in fp32; few chunks, as each reads all of dW
GPU_CHUNK_ELEMENTS = 1 << 28  # 512 MiB in half precision: hundreds of rows of any vocabulary


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    token_weights: Tensor | None = None,
    bias: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 - it is frozen
) -> Tensor:
    """``sum_t token_weights_t * cross_entropy(cap(logit_scale (hidden_t W^T + b)), label_t)``.

    Args:
        hidden: [T, D].
        weight: [V, D], or [V/tp, D] where other processes have the other slices; the gradient of
            ``hidden`` is then this slice's part of a sum over them, which the caller makes.
        labels: int64 [T], -100 where there is no target: such rows cost nothing.
        token_weights: fp32 [T], no gradient; None is 1.
        bias: [V] or [V/tp].
        options: smoothing, z-loss, scale, cap and the slice of the vocabulary.

    Returns:
        fp32 scalar, the same on all of the vocabulary's group.

    Comm: one all-gather of [5, chunk] fp32 a chunk of rows over that group, forward only.

    Raises:
        ShapeError: shapes don't fit or a label is out of range.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"linear_cross_entropy: hidden must be [T, D] and weight [V, D], came "
            f"{list(hidden.shape)} and {list(weight.shape)}"
        )
    options = replace(options, vocabulary=options.slice(weight.shape[0]))
    check_labels(labels, hidden.shape[0], options.own_slice.size, "linear_cross_entropy")
    if token_weights is None:
        token_weights = torch.ones(labels.shape, device=hidden.device)
    with as_given(hidden):
        return _LinearCrossEntropy.apply(hidden, weight, bias, (labels, token_weights), options)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        hidden, weight, bias, targets, options = inputs
        needs = tuple(ctx.needs_input_grad[:3])
        loss, gradients = _forward_backward((hidden, weight, bias), targets, options, needs)
        ctx.gradients = gradients
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy: its gradients are scaled in place, so backward runs once"
            )
        pairs = zip(ctx.gradients, ctx.dtypes, strict=True)
        gradients = [None if g is None else _scaled(g, upstream, dtype) for g, dtype in pairs]
        ctx.gradients = None
        return (*gradients, None, None)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient times a number, rounded to ``dtype`` in the same pass; over itself if it fits."""
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor, out=out)


def _forward_backward(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    targets: tuple[Tensor, Tensor],
    options: LossOptions,
    needs: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Loss and gradients (None where not needed), a chunk of the rows with labels at a time."""
    hidden, weight, bias = inputs
    labels, token_weights = targets
    loss = wide(hidden.new_zeros(()))
    dhidden, dweight, dbias = (
        wide(torch.zeros_like(x)) if x is not None and needed else None
        for x, needed in zip(inputs, needs, strict=True)
    )
    chunks = labelled_chunks(labels, weight.shape[0], options.rows)
    dtype = weight.dtype if _fits_narrow(weight, options) else loss.dtype
    memory = weight.new_empty(len(chunks[0]), weight.shape[0], dtype=dtype)  # for chunks in turn
    for part in chunks:
        x, label, share = hidden[part], labels[part], wide(token_weights[part])
        logits = _logits(x, weight, bias, memory[: len(part)])
        scale_and_cap(logits, options.logit_scale, options.logit_cap)
        statistics = row_statistics(logits, label, options.own_slice)
        loss += (row_loss(statistics, label, options) * share).sum()
        if not any(needs):
            continue
        share, slope = share * options.logit_scale, cap_slope(logits, options.logit_cap)
        gradient = _logit_gradient(logits, statistics, label, share, options)
        if slope is not None:
            gradient *= slope
        narrow = gradient.to(weight.dtype)
        if dhidden is not None:
            dhidden[part] = wide(narrow @ weight)
        if dweight is not None:
            add_product(dweight, narrow.t(), x)
        if dbias is not None:
            dbias += gradient.sum(0, dtype=dbias.dtype)
    return loss, (dhidden, dweight, dbias)


def _logit_gradient(
    logits: Tensor, statistics: RowStatistics, labels: Tensor, share: Tensor, options: LossOptions
) -> Tensor:
    """The gradient of a chunk's logits, written over them."""
    places = largest_places(logits) if options.max_z_loss else None
    gradient = logit_gradient(logits, statistics.lse, labels, share, options, in_place=True)
    if places is not None:
        add_largest(gradient, places, statistics.tops, labels, share, options)
    return gradient


def _fits_narrow(weight: Tensor, options: LossOptions) -> bool:
    """Whether logits stay in half precision, as the product gives them: the kernels widen them.

    What scales or caps them first, and a CPU's kernels, need them in fp32.
    """
    is_plain = options.logit_scale == 1.0 and not options.logit_cap
    is_half, name = weight.dtype.itemsize == 2 and weight.shape[0] > 0, chosen(weight)
    takes_half = name == "simt" or (name != "reference" and weight.device.type != "cpu")
    return is_plain and is_half and takes_half


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor) -> Tensor:
    """``x W^T + b`` in ``memory``, [rows, V]; from a product in W's dtype."""
    if memory.dtype != weight.dtype:
        return memory.copy_(torch.nn.functional.linear(x, weight, bias))
    if bias is None:
        return torch.mm(x, weight.t(), out=memory)
    return torch.addmm(bias, x, weight.t(), out=memory)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Total += left @ right in fp32; by the product itself where the device's can."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif adds_wide(left.device, left.dtype):
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total += left @ right


@cache
def adds_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products of half precision add to fp32: on GPUs, in the later releases of PyTorch."""
    total, narrow = (torch.empty(0, 0, device=device, dtype=t) for t in (torch.float32, dtype))
    try:
        torch.addmm(total, narrow, narrow, out_dtype=torch.float32, out=total)
    except RuntimeError:  # there is no such kernel, or it takes other dtypes
        return False
    return True


def labelled_chunks(labels: Tensor, height: int, rows: Tensor | None = None) -> tuple[Tensor, ...]:
    """Numbers of the rows with a label, in even chunks whose logits fit the device's chunk."""
    rows = labelled_rows(labels) if rows is None else rows
    size = CHUNK_ELEMENTS if labels.device.type == "cpu" else GPU_CHUNK_ELEMENTS
    most = max(size // max(height, 1), 1)
    return rows.tensor_split(max(-(-len(rows) // most), 1))
