"""Attention as one writes it in PyTorch, every product and the softmax in the tensors' own dtype.

The kernels round probabilities to 16 bits before they multiply, as this does; the reference, which
is fp32 throughout, does not.
"""

import math

import torch
from torch import Tensor

from megalite.ops import AttentionOptions, RowIntervals
from megalite.ops.random import attention_keep


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RowIntervals,
    bias: Tensor | None,
    options: AttentionOptions,
) -> Tensor:
    """[B, Sq, N, H] from q [B, Sq, N, H] and k, v [B, Sk, G, H]; bias [N, Sq + Sk - 1] or None."""
    ratio = q.shape[2] // k.shape[2]
    allowed = mask.materialize()[:, None]  # [B, 1, Sq, Sk]
    used = allowed.any(2)[:, 0, :, None, None]  # [B, Sk, 1, 1]
    k, v = (x.masked_fill(~used, 0.0).repeat_interleave(ratio, 2) for x in (k, v))
    scores = torch.einsum("bqnh,bknh->bnqk", q, k) / math.sqrt(q.shape[3])
    if bias is not None:
        queries, keys = scores.shape[-2:]
        index = torch.arange(keys) - torch.arange(queries)[:, None] + queries - 1
        scores = scores + bias[:, index].to(scores.dtype)
    lowest = torch.finfo(scores.dtype).min
    probabilities = torch.softmax(scores.masked_fill(~allowed, lowest), -1) * allowed
    if options.dropout_p > 0:
        heads = torch.arange(q.shape[2])
        keep = attention_keep(
            options.dropout_seed, options.dropout_p, options.sample_ids, heads, *scores.shape[-2:]
        )
        probabilities = probabilities * (keep / (1.0 - options.dropout_p)).to(scores.dtype)
    return torch.einsum("bnqk,bknh->bqnh", probabilities, v)
