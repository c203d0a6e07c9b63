"""Rotary position embedding.

Source: Su et al. 2021, arXiv:2104.09864; two position axes as ChatGLM-6B has them.
"""

from typing import Any

import torch
from torch import Tensor

from megalite.errors import ShapeError
from megalite.ops.backends import kernels
from megalite.ops.precision import wide


def rope_tables(
    positions: Tensor,
    rotary_dim: int,
    base: float = 10000.0,
    scaling: float = 1.0,
    frequencies: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position's angles.

    Args:
        positions: int [B, S], or [B, S, P] for P position axes.
        rotary_dim: R, dimensions of a head that turn, in P equal sections.
        base: of the angles' wavelengths.
        scaling: positions are divided by it.
        frequencies: fp32 [R / (2 P)] or [B, S, 1, R / (2 P)], radians a position, in place of
            those of ``base``.

    Returns:
        Two fp32 tensors [B, S, P, R / (2 P)].
    """
    if positions.dim() == 2:
        positions = positions[..., None]
    section = rotary_dim // positions.shape[-1]
    exponent = torch.arange(0, section, 2, dtype=torch.float32, device=positions.device) / section
    places = (positions.float() / scaling)[..., None]
    angles = places / base**exponent if frequencies is None else places * frequencies
    return angles.cos(), angles.sin()


def rope(
    x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, in_place: bool = False
) -> Tensor:
    """Turn the first R dimensions of each head by its position; the rest pass.

    Args:
        x: [B, S, N, H].
        cos: fp32 [B, S, P, R / (2 P)], from :func:`rope_tables`.
        sin: the same shape.
        interleaved: pairs are (2i, 2i + 1) of a section, not (i, i + section / 2).
        in_place: write over ``x`` and give it; the gradient turns back and needs no ``x``. In code
            that ``torch.compile`` traces, which gets the gradient of such a write wrong, what comes
            back is a tensor of its own.

    Returns:
        [B, S, N, H], dtype of ``x``; fp32 inside.

    Raises:
        ShapeError: the tables don't fit ``x``, or it can't be written in place.
    """
    if x.dim() != 4 or cos.shape != sin.shape or cos.dim() != 4 or cos.shape[:2] != x.shape[:2]:
        raise ShapeError(
            f"rope: x must be [B, S, N, H] and cos, sin [B, S, P, R/(2P)], came {list(x.shape)}, "
            f"{list(cos.shape)}, {list(sin.shape)}"
        )
    if 2 * cos.shape[2] * cos.shape[3] > x.shape[3]:
        raise ShapeError(
            f"rope: 2 x {cos.shape[2]} x {cos.shape[3]} dimensions must fit a head of {x.shape[3]}"
        )
    if in_place:
        _check_in_place(x)
    in_place = in_place and not torch.compiler.is_compiling()
    if torch.is_grad_enabled():
        return _Rope.apply(x, cos, sin, interleaved, in_place)
    return _turned(kernels(x), x, (cos, sin), interleaved, in_place)


def _check_in_place(x: Tensor) -> None:
    if x.is_leaf and x.requires_grad and torch.is_grad_enabled():
        raise ShapeError(
            "rope x: in place it must be no leaf that requires a gradient, came one: turn a copy"
        )
    if any(size > 1 and stride == 0 for size, stride in zip(x.shape, x.stride(), strict=True)):
        raise ShapeError(
            f"rope x: in place each element must have memory of its own, came {list(x.shape)} with "
            f"strides {list(x.stride())}: turn a contiguous copy"
        )


class _Rope(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, in_place: bool
    ) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved, ctx.ops = interleaved, kernels(x)
        if in_place:
            ctx.mark_dirty(x)
        return _turned(ctx.ops, x, (cos, sin), interleaved, in_place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        turned = _turn(ctx.ops, gradient, cos, sin, ctx.interleaved, inverse=True)
        return turned, None, None, None, None


def _turned(
    ops: Any, x: Tensor, tables: tuple[Tensor, Tensor], interleaved: bool, in_place: bool
) -> Tensor:
    if not in_place:
        return _turn(ops, x, *tables, interleaved, inverse=False)
    if ops is None:
        return x.copy_(rope_reference(x, *tables, interleaved, inverse=False))
    ops.rope_(x, *tables, interleaved, False)
    return x


def _turn(
    ops: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool
) -> Tensor:
    if ops is None:
        return rope_reference(x, cos, sin, interleaved, inverse)
    turned: Tensor = ops.rope(x, cos, sin, interleaved, inverse)
    return turned


def rope_reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, inverse: bool) -> Tensor:
    """RoPE in plain PyTorch; ``inverse`` turns back, which is the gradient."""
    axes, half = cos.shape[2:]
    turned = 2 * axes * half
    whole = wide(x)
    sections = whole[..., :turned].unflatten(-1, (axes, 2 * half))  # [B, S, N, P, R/P]
    cos, sin = cos[:, :, None].to(whole.dtype), sin[:, :, None].to(whole.dtype)
    sin = -sin if inverse else sin
    if interleaved:
        a, b = sections[..., 0::2], sections[..., 1::2]
    else:
        a, b = sections[..., :half], sections[..., half:]
    a, b = a * cos - b * sin, b * cos + a * sin
    pairs = torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)
    return torch.cat((pairs.flatten(-2), whole[..., turned:]), -1).to(x.dtype)
