"""Cross-entropy of logits, with label smoothing and z-loss, also over a split vocabulary."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.backends import kernels
from megalite.ops.precision import wide
from megalite.ops.vocabulary import (
    IGNORE,
    LossOptions,
    RowStatistics,
    add_at_labels,
    cap_slope,
    check_labels,
    largest_places,
    row_statistics,
    scale_and_cap,
)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    options: LossOptions = LossOptions(),  # noqa: B008 - it is frozen
) -> Tensor:
    """The loss of each row; no reduction.

    Args:
        logits: [T, V], or [T, V/tp] where other processes have the other slices.
        labels: int64 [T], -100 where there is no target.
        options: smoothing, z-loss and the slice of the vocabulary.

    Returns:
        fp32 [T], 0 where there is no target.

    Comm: one all-gather of [5, T] fp32 over the vocabulary's group, forward only.

    Raises:
        ShapeError: shapes don't fit or a label is out of range.
    """
    if logits.dim() != 2:
        raise ShapeError(f"cross_entropy logits: must be [T, V], came {list(logits.shape)}")
    options = replace(options, vocabulary=options.slice(logits.shape[1]))
    check_labels(labels, logits.shape[0], options.own_slice.size, "cross_entropy")
    return _CrossEntropy.apply(logits, labels, options)


def row_loss(statistics: RowStatistics, labels: Tensor, options: LossOptions) -> Tensor:
    """Cross-entropy of each row from its statistics: fp32 [T], 0 where there is no target."""
    smoothing = options.label_smoothing
    target = (1.0 - smoothing) * statistics.target + smoothing * statistics.mean
    loss = statistics.lse - target + options.z_loss * statistics.lse.square()
    if options.max_z_loss:
        loss = loss + options.max_z_loss * statistics.tops.amax(0).square()
    return torch.where(labels == IGNORE, 0.0, loss)


def logit_gradient(
    logits: Tensor,
    lse: Tensor,
    labels: Tensor,
    upstream: Tensor,
    options: LossOptions,
    in_place: bool = False,
) -> Tensor:
    """Gradient of ``sum(upstream * row_loss)`` by local (scaled) logits: fp32 [T, V/tp].

    With ``in_place`` it has the logits' dtype, which the backend takes, and is written over them.
    """
    smoothing, vocabulary = options.label_smoothing, options.own_slice
    upstream = torch.where(labels == IGNORE, 0.0, upstream)
    ops = kernels(logits)
    if ops is not None and logits.shape[1]:
        full = (logits if in_place else wide(logits)).contiguous()
        gradient = full if in_place else torch.empty_like(full)
        place = vocabulary.offset, vocabulary.size
        ops.logit_gradient(gradient, full, lse, labels, upstream, *place, smoothing, options.z_loss)
        return gradient
    gradient = torch.exp(wide(logits) - lse[:, None])
    gradient *= (upstream * (1.0 + 2.0 * options.z_loss * lse))[:, None]
    if smoothing:
        gradient -= (upstream * (smoothing / vocabulary.size))[:, None]
    add_at_labels(gradient, labels, vocabulary.offset, -(1.0 - smoothing) * upstream)
    return gradient


def add_largest(
    gradient: Tensor,
    places: Tensor,
    tops: Tensor,
    labels: Tensor,
    upstream: Tensor,
    options: LossOptions,
) -> None:
    """Add the max-z loss's gradient to that of local logits, [T, V/tp], largest at ``places``.

    Source: Yang et al. 2023, arXiv:2309.10305, section 3.
    """
    if gradient.shape[1] == 0:
        return
    is_here = (tops.argmax(0) == options.own_slice.axis.rank) & (labels != IGNORE)
    amount = 2.0 * options.max_z_loss * tops.amax(0) * torch.where(is_here, upstream, 0.0)
    gradient.scatter_add_(1, places[:, None], amount[:, None].to(gradient.dtype))


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, options: LossOptions) -> Tensor:
        scaled = logits if options.logit_scale == 1.0 else logits * options.logit_scale
        if options.logit_cap:
            scaled = scale_and_cap(wide(scaled).clone(), 1.0, options.logit_cap)
        statistics = row_statistics(wide(scaled), labels, options.own_slice)
        ctx.save_for_backward(scaled, labels, statistics.lse, statistics.tops)
        ctx.options, ctx.dtype = options, logits.dtype
        return row_loss(statistics, labels, options)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (logits, labels, lse, tops), options = ctx.saved_tensors, ctx.options
        upstream = upstream * options.logit_scale
        gradient = logit_gradient(logits, lse, labels, upstream, options)
        if options.max_z_loss:
            places = largest_places(logits)
            add_largest(gradient, places, tops, labels, upstream, options)
        slope = cap_slope(logits, options.logit_cap)
        gradient = gradient if slope is None else gradient * slope
        return gradient.to(ctx.dtype), None, None
