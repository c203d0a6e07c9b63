"""Activations between the matrices of a feed-forward layer, with bias and gate in one pass.

Source: Shazeer 2020, arXiv:2002.05202; Hendrycks & Gimpel 2016, arXiv:1606.08415.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from megalite.errors import ShapeError
from megalite.ops.backends import kernels

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": partial(functional.gelu, approximate="tanh"),
    "silu": functional.silu,
}


def activation(
    kind: str,
    up: Tensor,
    gate: Tensor | None = None,
    up_bias: Tensor | None = None,
    gate_bias: Tensor | None = None,
) -> Tensor:
    """``f(gate + gate_bias) (up + up_bias)``, or ``f(up + up_bias)`` without a gate.

    Args:
        kind: f: one of ``ACTIVATIONS``.
        up: [..., F], bf16, fp16, fp32 or fp64.
        gate: the same, or None.
        up_bias: [F] or None.
        gate_bias: [F] or None.

    Returns:
        [..., F], dtype of ``up``; fp32 inside, rounded once.

    Raises:
        ShapeError: ``kind`` is unknown or shapes don't fit.
    """
    _check(kind, up, gate, (up_bias, gate_bias))
    ops = kernels(up)
    if ops is None:
        return _reference(kind, up, gate, up_bias, gate_bias)
    if not torch.is_grad_enabled():
        found: Tensor = ops.activation(up, gate, up_bias, gate_bias, kind)
        return found
    return _Activation.apply(up, gate, up_bias, gate_bias, kind)


def _check(
    kind: str, up: Tensor, gate: Tensor | None, biases: tuple[Tensor | None, Tensor | None]
) -> None:
    if kind not in ACTIVATIONS:
        raise ShapeError(f"activation: must be one of {', '.join(ACTIVATIONS)}, came {kind}")
    wanted = (
        ("gate", gate, up.shape),
        ("up_bias", biases[0], up.shape[-1:]),
        ("gate_bias", biases[1], up.shape[-1:]),
    )
    for name, tensor, shape in wanted:
        if tensor is not None and (tensor.shape != shape or tensor.dtype != up.dtype):
            raise ShapeError(
                f"activation {name}: must be {up.dtype} {list(shape)} as up is, came "
                f"{tensor.dtype} {list(tensor.shape)}"
            )
    if gate is None and biases[1] is not None:
        raise ShapeError("activation gate_bias: needs a gate, came without")


def _reference(
    kind: str, up: Tensor, gate: Tensor | None, up_bias: Tensor | None, gate_bias: Tensor | None
) -> Tensor:
    """The same in plain PyTorch."""
    up = up if up_bias is None else up + up_bias
    if gate is None:
        return ACTIVATIONS[kind](up)
    return ACTIVATIONS[kind](gate if gate_bias is None else gate + gate_bias) * up


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *tensors, kind = inputs
        ctx.ops, ctx.kind = kernels(tensors[0]), kind
        found: Tensor = ctx.ops.activation(*tensors, kind)
        if kind == "relu" and tensors[1] is None:
            # What it gives, which the next matrix keeps too, has the sign of what it read.
            bias = tensors[2]
            tensors = [found, None, None if bias is None else torch.zeros_like(bias), None]
        ctx.save_for_backward(*tensors)
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        gradients = ctx.ops.activation_backward(upstream, *tensors, ctx.kind)
        pairs = zip(tensors, gradients, strict=True)
        return *(None if tensor is None else gradient for tensor, gradient in pairs), None
