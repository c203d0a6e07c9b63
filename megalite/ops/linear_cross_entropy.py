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
from megalite.ops.matrix_product import add_product, product, takes_onednn
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
        enlarged = _enlarged(targets[1], weight.dtype)
        loss, gradients = _forward_backward(
            (hidden, weight, bias), targets, options, needs, enlarged
        )
        ctx.gradients, ctx.enlarged = gradients, enlarged
        ctx.dtypes = hidden.dtype, weight.dtype, weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_cross_entropy: its gradients are scaled in place, so backward runs once"
            )
        factor = upstream if ctx.enlarged is None else upstream / ctx.enlarged
        pairs = zip(ctx.gradients, ctx.dtypes, strict=True)
        gradients = [None if g is None else _scaled(g, factor, dtype) for g, dtype in pairs]
        ctx.gradients = None
        return (*gradients, None, None)


def _enlarged(token_weights: Tensor, dtype: torch.dtype) -> Tensor | None:
    """What gradients in fp16 are multiplied by, a scalar of the device; None where they are not.

    A weight is about 1 / the targets of the global batch: below what fp16 can hold, times the
    probability of a token. The largest becomes 2^-4, so that sums over rows fit too.
    """
    if dtype != torch.float16 or token_weights.numel() == 0:
        return None
    largest = wide(token_weights).abs().amax()
    return torch.where((largest > 0) & largest.isfinite(), 0.0625 / largest, 1.0)


def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient times a number, rounded to ``dtype`` in the same pass; over itself if it fits."""
    if gradient.dtype == dtype and _is_known_one(factor):
        return gradient
    out = gradient if gradient.dtype == dtype else torch.empty_like(gradient, dtype=dtype)
    return torch.mul(gradient, factor, out=out)


def _is_known_one(number: Tensor) -> bool:
    """Whether a scalar is 1, where reading it waits for nothing: on a CPU, in code that runs."""
    is_read = number.device.type == "cpu" and not torch.compiler.is_compiling()
    return is_read and bool(number == 1.0)


def _forward_backward(
    inputs: tuple[Tensor, Tensor, Tensor | None],
    targets: tuple[Tensor, Tensor],
    options: LossOptions,
    needs: tuple[bool, ...],
    enlarged: Tensor | None,
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """Loss and gradients (None where not needed), a chunk of the rows with labels at a time."""
    hidden, weight, bias = inputs
    labels, token_weights = targets
    loss, dweight = wide(hidden.new_zeros(())), None
    dhidden, dbias = (
        wide(torch.zeros_like(x)) if x is not None and needed else None
        for x, needed in ((hidden, needs[0]), (bias, needs[2]))
    )
    is_narrow = _fits_narrow(weight, options)
    chunks = _loss_chunks(labels, weight, options.rows, is_narrow)
    # Of a single chunk the product itself is the gradient, rounded once.
    sum_dtype = weight.dtype if is_narrow and len(chunks) == 1 else loss.dtype
    dtype = weight.dtype if is_narrow else loss.dtype
    shape = len(chunks[0]), weight.shape[0]  # oneDNN's products come in memory of their own
    memory = (
        None if takes_onednn(hidden[: shape[0]], weight) else weight.new_empty(shape, dtype=dtype)
    )
    for part in chunks:
        x, label, share = hidden[part], labels[part], wide(token_weights[part])
        logits = _logits(x, weight, bias, memory)
        scale_and_cap(logits, options.logit_scale, options.logit_cap)
        statistics = row_statistics(logits, label, options.own_slice)
        loss += (row_loss(statistics, label, options) * share).sum()
        if not any(needs):
            del logits  # before there are others
            continue
        share = share if enlarged is None else share * enlarged
        share, slope = share * options.logit_scale, cap_slope(logits, options.logit_cap)
        gradient = _logit_gradient(logits, statistics, label, share, options)
        if slope is not None:
            gradient *= slope
        narrow = gradient.to(weight.dtype)
        if dhidden is not None:
            dhidden[part] = wide(product(narrow, weight.t()))
        if needs[1]:
            dweight = sum_of_products(dweight, narrow.t(), x, sum_dtype)
        if dbias is not None:
            dbias += gradient.sum(0, dtype=dbias.dtype)
        del logits, gradient, narrow
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


def _loss_chunks(
    labels: Tensor, weight: Tensor, rows: Tensor | None, is_narrow: bool
) -> tuple[Tensor, ...]:
    """The chunks of the loss: one, where its logits take no more than the sum that it saves.

    That sum, of the weight's gradient, is fp32 [V, D], the logits are [T, V] in half precision.
    """
    rows = labelled_rows(labels) if rows is None else rows
    if is_narrow and 2 * len(rows) <= 4 * weight.shape[1]:
        return (rows,)
    return labelled_chunks(labels, weight.shape[0], rows)


def _fits_narrow(weight: Tensor, options: LossOptions) -> bool:
    """Whether logits stay in half precision, as the product gives them: the kernels widen them.

    What scales or caps them first, and a CPU's kernels, need them in fp32.
    """
    is_plain = options.logit_scale == 1.0 and not options.logit_cap
    is_half, name = weight.dtype.itemsize == 2 and weight.shape[0] > 0, chosen(weight)
    takes_half = name == "simt" or (name != "reference" and weight.device.type != "cpu")
    return is_plain and is_half and takes_half


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, memory: Tensor | None) -> Tensor:
    """``x W^T + b``, [rows, V], in ``memory`` where there is some; from a product in W's dtype."""
    if memory is None:
        return product(x, weight, bias)
    memory = memory[: len(x)]
    if memory.dtype != weight.dtype:
        return memory.copy_(torch.nn.functional.linear(x, weight, bias))
    if bias is None:
        return torch.mm(x, weight.t(), out=memory)
    return torch.addmm(bias, x, weight.t(), out=memory)


def sum_of_products(
    total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype
) -> Tensor:
    """Total + left @ right in ``dtype``, over total; by the product itself where the device's can.

    Without a total the product begins one: nothing is cleared and read first.
    """
    if total is None:
        if left.dtype != dtype and adds_wide(left.device, left.dtype):
            return torch.mm(left, right, out_dtype=dtype)
        return product(left, right.t()).to(dtype)
    if left.dtype == total.dtype:
        return add_product(total, left, right.t())
    if adds_wide(left.device, left.dtype):
        return torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    total += left @ right
    return total


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
