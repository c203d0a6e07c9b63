"""Shapes of what the registered operators give, for tracing without data."""

import torch
from torch import Tensor

from megalite.ops.mask_plan import TILE


def register() -> None:
    """Register the shape functions; the operators must be loaded."""
    fake = torch.library.register_fake
    fake("megalite::mask_plan", _mask_plan)
    fake("megalite::attention", _attention)
    fake("megalite::attention_backward", _attention_backward)
    if hasattr(torch.ops.megalite, "capped_attention"):  # older builds have none
        fake("megalite::capped_attention", _attention)
        fake("megalite::capped_attention_backward", _capped_attention_backward)
    if hasattr(torch.ops.megalite, "row_products"):
        fake("megalite::paged_attention", lambda q, *_: q.new_empty(q.shape))
        fake("megalite::row_products", lambda x, w, _: x.new_empty(x.shape[0], w.shape[0]))
        fake("megalite::draw", _draw)
    fake("megalite::logit_statistics", _logit_statistics)
    fake("megalite::logit_gradient", lambda *_: None)
    fake("megalite::rope", lambda x, *_: torch.empty_like(x, memory_format=torch.contiguous_format))
    fake("megalite::rope_", lambda *_: None)
    fake("megalite::dropout", lambda x, *_: x.new_empty(x.shape))
    if hasattr(torch.ops.megalite, "embedding"):  # older builds have none, and are refused
        fake("megalite::embedding", lambda w, ids, *_: w.new_empty(*ids.shape, w.shape[1]))
        fake("megalite::embedding_backward", _embedding_backward)
        fake("megalite::add_norm", _add_norm)
        fake("megalite::add_norm_backward", _add_norm_backward)
        fake("megalite::activation", lambda up, *_: up.new_empty(up.shape))
        fake("megalite::activation_backward", _activation_backward)
    if hasattr(torch.ops.megalite, "dequantised"):  # older builds have none, and are refused
        fake("megalite::dequantised", _dequantised)


def _mask_plan(start: Tensor, _end: Tensor, num_keys: int) -> tuple[Tensor, Tensor]:
    batch, queries = start.shape
    rows, keys = -(-queries // TILE), -(-num_keys // TILE)
    return start.new_empty(batch, rows, 4), start.new_empty(batch, keys, 3)


def _attention(q: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _size = q.shape
    return q.new_empty(q.shape), q.new_empty(batch, heads, queries, dtype=torch.float32)


def _attention_backward(
    _dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias, needs_dbias = rest[6], rest[-1]
    shape = bias.shape if needs_dbias and isinstance(bias, Tensor) else torch.Size([0])
    dbias = q.new_empty(shape, dtype=torch.float32)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _capped_attention_backward(
    _dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: object
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _logit_statistics(logits: Tensor, *_: object) -> Tensor:
    return logits.new_empty(5, logits.shape[0], dtype=torch.float32)


def _add_norm(
    x: Tensor, update: Tensor | None, _weight: Tensor, _bias: Tensor | None, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    centred, rows = rest[1], x.shape[:-1]
    total = x.new_empty((0,) if update is None else x.shape)
    mean = x.new_empty(rows if centred else (0,), dtype=torch.float32)
    return total, x.new_empty(x.shape), mean, x.new_empty(rows, dtype=torch.float32)


def _add_norm_backward(
    _dout: Tensor, _dsum: Tensor | None, total: Tensor, weight: Tensor, *rest: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    residual_scale, dropout_p, has_update, has_bias = rest[3], rest[4], *rest[-2:]
    is_apart = has_update and (dropout_p != 0.0 or residual_scale != 1.0)
    dupdate = total.new_empty(total.shape if is_apart else (0,))
    dbias = weight.new_empty(weight.shape if has_bias else (0,))
    return total.new_empty(total.shape), dupdate, weight.new_empty(weight.shape), dbias


def _activation_backward(_dout: Tensor, up: Tensor, *others: object) -> tuple[Tensor, ...]:
    rest = (up.new_empty(x.shape if isinstance(x, Tensor) else (0,)) for x in others[:3])
    return up.new_empty(up.shape), *rest


def _embedding_backward(dout: Tensor, _ids: Tensor, _offset: int, height: int) -> Tensor:
    return dout.new_empty(height, dout.shape[-1])


def _dequantised(_codes: Tensor, scales: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    return scales.new_empty(scales.shape[0], width, dtype=dtype)


def _draw(logits: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    rows = logits.shape[0]
    return logits.new_empty(rows, dtype=torch.int64), logits.new_empty(rows)
