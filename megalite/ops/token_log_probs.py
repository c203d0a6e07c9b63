"""Log-probabilities of given tokens and the entropy of each row, without whole logits.

Unlike the loss, what comes back is a number a row with an unknown upstream gradient: the backward
pass makes the logits of a chunk again.
"""

from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.cross_entropy import logit_gradient
from megalite.ops.linear_cross_entropy import labelled_chunks, sum_of_products
from megalite.ops.matrix_product import product
from megalite.ops.precision import as_given, wide
from megalite.ops.vocabulary import (
    LossOptions,
    cap_slope,
    check_labels,
    row_statistics,
    scale_and_cap,
)


def token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 - it is frozen
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label, and entropy of its row.

    Args:
        hidden: [T, D].
        weight: [V, D], or [V/tp, D]: as in :func:`linear_cross_entropy`.
        labels: int64 [T], -100 where there is none.
        bias: [V] or [V/tp].
        options: scale (1 / temperature), cap and the slice of the vocabulary.

    Returns:
        log_probs fp32 [T] and entropy fp32 [T] in nats (no gradient), 0 where there is no label.

    Comm: one all-gather of [5, chunk] fp32 a chunk of rows, forward only.

    Raises:
        ShapeError: shapes don't fit or a label is out of range.
    """
    options = _checked(hidden, weight, labels, options, "token_log_probs")
    with as_given(hidden):
        return _TokenLogProbs.apply(hidden, weight, bias, labels, options)


@torch.no_grad()
def token_judgement(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    options: LossOptions = LossOptions(),  # noqa: B008 - it is frozen
) -> tuple[Tensor, Tensor]:
    """Log-probability of each label, and whether no token is likelier; as :func:`token_log_probs`.

    Returns:
        log_probs fp32 [T] in nats and 1 or 0 as fp32 [T]; both 0 where there is no label.
    """
    options = _checked(hidden, weight, labels, options, "token_judgement")
    log_probs, is_likeliest = (wide(hidden.new_zeros(labels.shape)) for _ in range(2))
    with as_given(hidden):
        for part in labelled_chunks(labels, weight.shape[0], options.rows):
            logits = _logits(hidden[part], weight, bias, options)
            statistics = row_statistics(logits, labels[part], options.own_slice)
            log_probs[part] = statistics.target - statistics.lse
            is_likeliest[part] = (statistics.target >= statistics.top).to(log_probs.dtype)
    return log_probs, is_likeliest


def _checked(
    hidden: Tensor, weight: Tensor, labels: Tensor, options: LossOptions, where: str
) -> LossOptions:
    """What of the options counts here, once the shapes fit."""
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ShapeError(
            f"{where}: hidden must be [T, D] and weight [V, D], came "
            f"{list(hidden.shape)} and {list(weight.shape)}"
        )
    options = LossOptions(
        logit_scale=options.logit_scale,
        logit_cap=options.logit_cap,
        vocabulary=options.slice(weight.shape[0]),
        rows=options.rows,
    )
    check_labels(labels, hidden.shape[0], options.own_slice.size, where)
    return options


def _logits(x: Tensor, weight: Tensor, bias: Tensor | None, options: LossOptions) -> Tensor:
    logits = wide(product(x, weight, bias))
    return scale_and_cap(logits, options.logit_scale, options.logit_cap)


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden, weight, bias, labels, options = inputs
        shape = labels.shape
        log_probs, entropy, lse = (wide(hidden.new_zeros(shape)) for _ in range(3))
        for part in labelled_chunks(labels, weight.shape[0], options.rows):
            logits = _logits(hidden[part], weight, bias, options)
            statistics = row_statistics(logits, labels[part], options.own_slice)
            log_probs[part] = statistics.target - statistics.lse
            entropy[part] = statistics.lse - statistics.weighted
            lse[part] = statistics.lse
        ctx.save_for_backward(hidden, weight, bias, labels, lse)
        ctx.options = options
        ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _entropy: Tensor) -> tuple[Tensor | None, ...]:
        with as_given(upstream):
            return _gradients(ctx, upstream)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    """Of hidden states, weight and bias, a chunk of labelled rows at a time."""
    hidden, weight, bias, labels, lse = ctx.saved_tensors
    options = ctx.options
    dhidden, dweight = wide(torch.zeros_like(hidden)), None
    dbias = None if bias is None else wide(torch.zeros_like(bias))
    for part in labelled_chunks(labels, weight.shape[0], options.rows):
        x = hidden[part]
        logits = _logits(x, weight, bias, options)
        share = -upstream[part] * options.logit_scale
        slope = cap_slope(logits, options.logit_cap)
        gradient = logit_gradient(logits, lse[part], labels[part], share, options, in_place=True)
        if slope is not None:
            gradient *= slope
        narrow = gradient.to(weight.dtype)
        dhidden[part] = wide(product(narrow, weight.t()))
        dweight = sum_of_products(dweight, narrow.t(), x, dhidden.dtype)
        if dbias is not None:
            dbias += gradient.sum(0)
    assert dweight is not None  # there is a chunk, of no row at least
    if dbias is not None:
        dbias = dbias.to(bias.dtype)
    return dhidden.to(hidden.dtype), dweight.to(weight.dtype), dbias, None, None
