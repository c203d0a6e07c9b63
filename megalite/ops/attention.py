"""Masked attention: softmax(scale q k^T + bias) v over each row's interval of keys.

Scores may be capped, cap tanh(scale q k^T / cap), in place of a bias.

Source: Vaswani et al. 2017, arXiv:1706.03762; the tiled form Dao 2023, arXiv:2307.08691.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.backends import capped_kernels, kernels
from megalite.ops.mask import RowIntervals
from megalite.ops.precision import wide
from megalite.ops.random import attention_keep


@dataclass(frozen=True)
class AttentionOptions:
    """How attention scores and drops.

    Attributes:
        scale: of q k^T; None is 1 / sqrt(H).
        dropout_p: probability of dropping a probability.
        dropout_seed: key of the counter-based generator.
        sample_ids: int64 [B], needed where ``dropout_p`` > 0.
        head_offset: number of the first head here in the whole model.
        score_cap: scores become cap tanh(scores / cap); 0: they don't.
    """

    scale: float | None = None
    dropout_p: float = 0.0
    dropout_seed: int = 0
    sample_ids: Tensor | None = None
    head_offset: int = 0
    score_cap: float = 0.0

    def scale_of(self, q: Tensor) -> float:
        """The scale for queries [..., H]."""
        return q.shape[-1] ** -0.5 if self.scale is None else self.scale


def _arguments(
    q: Tensor, mask: RowIntervals, bias: Tensor | None, options: AttentionOptions
) -> tuple[Any, ...]:
    """The trailing arguments of the registered operators; those of capped ones have no bias."""
    random = options.dropout_p, options.dropout_seed, options.sample_ids, options.head_offset
    said = (bias,) if not options.score_cap else ()
    cap = (options.score_cap,) if options.score_cap else ()
    return (mask.start, mask.end, *mask.plan, *said, options.scale_of(q), *random, *cap)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RowIntervals,
    bias: Tensor | None = None,
    options: AttentionOptions = AttentionOptions(),
) -> Tensor:
    """Attend from every query row to the keys of its interval.

    Args:
        q: [B, Sq, N, H], bf16, fp16 or fp32, last dimension contiguous.
        k: [B, Sk, G, H]; query head n reads key head n // (N / G).
        v: [B, Sk, G, H].
        mask: row intervals [B, Sq] over Sk keys.
        bias: [N, Sq + Sk - 1] fp32, added to scores by key - query + Sq - 1; may need a gradient.
        options: scale, dropout and cap.

    Returns:
        [B, Sq, N, H], dtype of ``q``; 0 in rows without keys. Softmax and sums in fp32.

    Raises:
        ShapeError: shapes, dtypes or devices don't fit, or a bias comes with a cap.
        KernelUnavailable: scores are capped where the kernels can't.
    """
    _check(q, k, v, mask, bias)
    if options.score_cap and bias is not None:
        raise ShapeError("attention bias: must be None where score_cap is not 0, came both")
    if options.dropout_p > 0 and options.sample_ids is None:
        raise ShapeError("attention sample_ids: int64 [B] must come with dropout_p > 0, came None")
    return _Attention.apply(*_with_positive_scale(q, options, (k, v, bias, mask)))


def _with_positive_scale(
    q: Tensor, options: AttentionOptions, others: tuple[Any, ...]
) -> tuple[Any, ...]:
    """The inputs of the kernels, whose running maximum is of scores before the scale.

    A negative scale is the sign of ``q``, a scale of 0 a ``q`` of zeros: the same bits.
    """
    scale = options.scale_of(q)
    if not math.isfinite(scale):
        raise ShapeError(f"attention scale: must be a finite number, came {scale}")
    if scale <= 0.0:
        q, options = (-q if scale else q * 0.0), replace(options, scale=-scale or 1.0)
    return (q, *others, options)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: RowIntervals, bias: Tensor | None) -> None:
    if q.dim() != 4 or k.dim() != 4 or k.shape != v.shape:
        raise ShapeError(
            f"attention q, k, v: must be [B, Sq, N, H] and twice [B, Sk, G, H], came "
            f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        )
    batch, queries, heads, size = q.shape
    if k.shape[0] != batch or k.shape[3] != size or heads % k.shape[2]:
        raise ShapeError(
            f"attention k: must be [{batch}, Sk, G, {size}] with G dividing {heads}, "
            f"came {list(k.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype:
        raise ShapeError(
            f"attention q, k, v: must have one dtype, came {q.dtype}, {k.dtype}, {v.dtype}"
        )
    if tuple(mask.start.shape) != (batch, queries) or mask.num_keys != k.shape[1]:
        raise ShapeError(
            f"attention mask: must be [{batch}, {queries}] over {k.shape[1]} keys, came "
            f"{list(mask.start.shape)} over {mask.num_keys}"
        )
    if bias is not None and tuple(bias.shape) != (heads, queries + k.shape[1] - 1):
        raise ShapeError(
            f"attention bias: must be [{heads}, {queries + k.shape[1] - 1}], came "
            f"{list(bias.shape)}"
        )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        q, k, v, bias, mask, options = inputs
        ops = capped_kernels(q) if options.score_cap else kernels(q)
        if ops is None:
            out, lse = forward_reference((q, k, v), bias, mask, options)
        elif options.score_cap:
            out, lse = ops.capped_attention(q, k, v, *_arguments(q, mask, bias, options))
        else:
            out, lse = ops.attention(q, k, v, *_arguments(q, mask, bias, options))
        ctx.save_for_backward(q, k, v, bias, out, lse)
        ctx.mask, ctx.options, ctx.ops = mask, options, ops
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, out, lse = ctx.saved_tensors
        needs_bias = bias is not None and ctx.needs_input_grad[3]
        if ctx.ops is None:
            dq, dk, dv, dbias = backward_reference(
                dout, (q, k, v), bias, lse, ctx.mask, ctx.options
            )
        elif ctx.options.score_cap:
            arguments = _arguments(q, ctx.mask, bias, ctx.options)
            dq, dk, dv = ctx.ops.capped_attention_backward(dout, q, k, v, out, lse, *arguments)
            dbias = None
        else:
            arguments = _arguments(q, ctx.mask, bias, ctx.options)
            dq, dk, dv, dbias = ctx.ops.attention_backward(
                dout, q, k, v, out, lse, *arguments, needs_bias
            )
        return dq, dk, dv, dbias if needs_bias else None, None, None


def _scores(
    q: Tensor, k: Tensor, bias: Tensor | None, mask: RowIntervals, options: AttentionOptions
) -> Tensor:
    """Masked scores, [B, G, N/G, Sq, Sk], in at least fp32."""
    scale, cap = options.scale_of(q), options.score_cap
    heads, groups = q.shape[2], k.shape[2]
    grouped = wide(q).unflatten(2, (groups, heads // groups))  # [B, Sq, G, N/G, H]
    scores = torch.einsum("bqgrh,bkgh->bgrqk", grouped, wide(k)) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        queries, keys = scores.shape[-2:]
        index = _distance_index(queries, keys, q.device)
        dense = bias.to(scores.dtype)[:, index]  # [N, Sq, Sk]
        scores = scores + dense.unflatten(0, (groups, heads // groups))
    allowed = mask.materialize()[:, None, None]
    return scores.masked_fill(~allowed, -math.inf)


def _distance_index(queries: int, keys: int, device: torch.device) -> Tensor:
    row = torch.arange(queries, device=device)[:, None]
    return torch.arange(keys, device=device) - row + (queries - 1)


def _keep(shape: torch.Size, options: AttentionOptions) -> Tensor | None:
    """Dropout's factor for probabilities [B, G, N/G, Sq, Sk], or None."""
    if options.dropout_p == 0.0:
        return None
    batch, groups, ratio, queries, keys = shape
    assert options.sample_ids is not None
    heads = options.head_offset + torch.arange(groups * ratio)
    keep = attention_keep(
        options.dropout_seed, options.dropout_p, options.sample_ids, heads, queries, keys
    )
    return keep.view(shape) / (1.0 - options.dropout_p)


def forward_reference(
    qkv: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    mask: RowIntervals,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor]:
    """Attention in plain PyTorch: (out, lse fp32 [B, N, Sq]); -inf in rows without keys."""
    q, k, v = qkv
    scores = _scores(q, k, bias, mask, options)
    lse = torch.logsumexp(scores, -1)
    probabilities = torch.exp(scores - _finite(lse)[..., None])
    keep = _keep(probabilities.shape, options)
    if keep is not None:
        probabilities = probabilities * keep
    out = torch.einsum("bgrqk,bkgh->bqgrh", probabilities, wide(v))
    return out.flatten(2, 3).to(q.dtype), lse.flatten(1, 2)


def _finite(lse: Tensor) -> Tensor:
    return torch.where(torch.isneginf(lse), 0.0, lse)


def backward_reference(
    dout: Tensor,
    qkv: tuple[Tensor, Tensor, Tensor],
    bias: Tensor | None,
    lse: Tensor,
    mask: RowIntervals,
    options: AttentionOptions,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients (dq, dk, dv, dbias fp32 or empty) in plain PyTorch."""
    q, k, v = qkv
    heads, groups = q.shape[2], k.shape[2]
    split, scale = (groups, heads // groups), options.scale_of(q)
    scores = _scores(q, k, bias, mask, options)
    p = torch.exp(scores - _finite(lse).unflatten(1, split)[..., None])
    keep = _keep(p.shape, options)
    d_out = wide(dout).unflatten(2, split)  # [B, Sq, G, N/G, H]
    d_p = torch.einsum("bqgrh,bkgh->bgrqk", d_out, wide(v))
    dropped = p
    if keep is not None:
        dropped, d_p = p * keep, d_p * keep
    dv = torch.einsum("bgrqk,bqgrh->bkgh", dropped, d_out)
    ds = p * (d_p - (p * d_p).sum(-1, keepdim=True))
    if options.score_cap:
        ds = ds * (1.0 - (scores.clamp(min=-options.score_cap) / options.score_cap).square())
    dq = torch.einsum("bgrqk,bkgh->bqgrh", ds, wide(k)).flatten(2, 3) * scale
    dk = torch.einsum("bgrqk,bqgrh->bkgh", ds, wide(q).unflatten(2, split)) * scale
    dbias = ds.new_empty(0)
    if bias is not None:
        index = _distance_index(q.shape[1], k.shape[1], q.device).flatten()
        dense = ds.sum(0).flatten(0, 1).flatten(1)  # [N, Sq * Sk]
        dbias = dense.new_zeros(heads, bias.shape[1]).index_add_(1, index, dense)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), dbias
