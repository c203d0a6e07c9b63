"""Operators on rows, the head and decoding beside PyTorch's and Liger's, timed as attention is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.here import Here, one_line
from benchmarks.gpu.speed import Call, Clock
from megalite.ops import (
    Update,
    activation,
    add_norm,
    attention,
    cross_entropy,
    dropout,
    linear_cross_entropy,
    norm,
    rope,
    rope_tables,
)
from megalite.ops import mask as masks

Make = Callable[[], Call]  # it may raise ImportError


@dataclass(frozen=True)
class Duel:
    """An operator and its peers.

    Attributes:
        name: of the case.
        sides: who, and what makes its call.
        work: bytes at least moved, or FLOPs.
        unit: of the rate: gb_per_s or tflops.
    """

    name: str
    sides: Mapping[str, Make]
    work: float
    unit: str = "gb_per_s"


def both(work: Callable[..., Tensor], leaves: Sequence[Tensor], upstream: Tensor) -> Make:
    """A call of both passes."""

    def call() -> None:
        for leaf in leaves:
            leaf.grad = None
        work(*leaves).backward(upstream)

    return lambda: call


def duels(here: Here) -> Iterator[Duel]:
    """All cases; each makes its tensors when it is asked for."""
    sizes = (64, 64, 320) if here.is_tiny else (8192, 4096, 32000)
    yield _norm(here, *sizes[:2])
    yield _added_norm(here, *sizes[:2])
    yield _gated(here, *sizes[:2])
    yield _rope(here, sizes[0])
    yield _dropout(here, *sizes[:2])
    yield _logits(here, sizes[0] // 4, sizes[2])
    for vocabulary in (320,) if here.is_tiny else (32000, 128256):
        yield _head(here, sizes[0], sizes[1] // 2, vocabulary)
    for shape in ((2, 64, 2, 2),) if here.is_tiny else ((1, 8192, 32, 32), (64, 1024, 32, 8)):
        yield _decoding(here, *shape)


def _dtype(here: Here) -> torch.dtype:
    return torch.float32 if here.is_rehearsal else here.dtypes()[0]


def _normal(here: Here, *shape: int) -> Tensor:
    return torch.randn(shape, device=here.device, dtype=_dtype(here))


def _norm(here: Here, rows: int, width: int) -> Duel:
    x, up = _normal(here, rows, width).requires_grad_(), _normal(here, rows, width)
    weight = torch.ones_like(x[0]).detach().requires_grad_()

    def liger() -> Call:
        from liger_kernel.transformers import LigerRMSNorm

        norm = LigerRMSNorm(width).to(here.device, _dtype(here))
        return both(norm, [x], up)()

    sides = {
        "megalite": both(norm, [x, weight], up),
        "F.rms_norm": both(lambda y, w: functional.rms_norm(y, (width,), w, 1e-5), [x, weight], up),
        "Liger": liger,
    }
    return Duel(f"RMSNorm {rows} x {width}, both passes", sides, 5.0 * x.nbytes)


def _added_norm(here: Here, rows: int, width: int) -> Duel:
    x, y = (_normal(here, rows, width).requires_grad_() for _ in range(2))
    weight = torch.ones_like(x[0]).detach().requires_grad_()
    up = [torch.ones_like(x).detach() for _ in range(2)]

    def plain() -> tuple[Tensor, Tensor]:
        total = x + y
        return total, functional.rms_norm(total, (width,), weight, 1e-5)

    def call_of(work: Callable[[], tuple[Tensor, Tensor]]) -> Make:
        def call() -> None:
            x.grad = y.grad = weight.grad = None
            torch.autograd.backward(work(), up)

        return lambda: call

    sides = {
        "megalite": call_of(lambda: add_norm(x, Update(y), weight)),
        "x + y, F.rms_norm": call_of(plain),
    }
    return Duel(f"residual and RMSNorm {rows} x {width}, both passes", sides, 8.0 * x.nbytes)


def _gated(here: Here, rows: int, width: int) -> Duel:
    gate, up = (_normal(here, rows, width).requires_grad_() for _ in range(2))
    upstream = torch.ones_like(up).detach()

    def liger() -> Call:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return both(LigerSiLUMulFunction.apply, [gate, up], upstream)()

    sides = {
        "megalite": both(lambda a, b: activation("silu", b, a), [gate, up], upstream),
        "F.silu(gate) * up": both(lambda a, b: functional.silu(a) * b, [gate, up], upstream),
        "Liger": liger,
    }
    return Duel(f"SwiGLU {rows} x {width}, both passes", sides, 8.0 * up.nbytes)


def _rope(here: Here, rows: int) -> Duel:
    y = _normal(here, 1, rows, 32, 128)
    cos, sin = rope_tables(torch.arange(rows, device=here.device)[None], 128)
    wide_cos, wide_sin = (torch.cat((t, t), -1).to(y.dtype) for t in (cos, sin))

    def halves() -> Tensor:
        first, second = y.chunk(2, -1)
        return y * wide_cos + torch.cat((-second, first), -1) * wide_sin

    sides = {
        "megalite": lambda: lambda: rope(y, cos, sin),
        "megalite in place": lambda: lambda: rope(y, cos, sin, in_place=True),
        "rotate-half": lambda: halves,
    }
    return Duel(f"RoPE {rows} x 32 x 128, forward", sides, 2.0 * y.nbytes)


def _dropout(here: Here, rows: int, width: int) -> Duel:
    x, samples = _normal(here, 4, rows // 4, width), torch.arange(4, device=here.device)
    sides = {
        "megalite": lambda: lambda: dropout(x, 0.1, 7, samples),
        "F.dropout": lambda: lambda: functional.dropout(x, 0.1),
    }
    return Duel(f"dropout {rows} x {width}, forward", sides, 2.0 * x.nbytes)


def _logits(here: Here, rows: int, vocabulary: int) -> Duel:
    logits = torch.randn(rows, vocabulary, device=here.device).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=here.device)
    up = torch.rand(rows, device=here.device)

    def peer(x: Tensor) -> Tensor:
        return functional.cross_entropy(x, labels, reduction="none")

    sides = {
        "megalite": both(lambda x: cross_entropy(x, labels), [logits], up),
        "F.cross_entropy": both(peer, [logits], up),
    }
    name = f"cross-entropy {rows} x {vocabulary} fp32, both passes"
    return Duel(name, sides, 3.0 * logits.nbytes)


def _head(here: Here, rows: int, width: int, vocabulary: int) -> Duel:
    hidden = _normal(here, rows, width).requires_grad_()
    weight = (_normal(here, vocabulary, width) * 0.02).requires_grad_()
    labels = torch.randint(0, vocabulary, (rows,), device=here.device)
    one = torch.ones((), device=here.device)

    def plain(x: Tensor, w: Tensor) -> Tensor:
        return functional.cross_entropy((x @ w.T).float(), labels)

    def liger() -> Call:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        return both(lambda x, w: loss(w, x, labels), [hidden, weight], one)()

    def ours(x: Tensor, w: Tensor) -> Tensor:
        return linear_cross_entropy(x, w, labels)

    sides = {
        "megalite": both(ours, [hidden, weight], one),
        "linear + F.cross_entropy": both(plain, [hidden, weight], one),
        "Liger": liger,
    }
    name = f"head and loss {rows} x {width} x {vocabulary}, both passes"
    return Duel(name, sides, 6.0 * rows * width * vocabulary, "tflops")


def _decoding(here: Here, batch: int, keys: int, heads: int, groups: int) -> Duel:
    q = _normal(here, batch, 1, heads, 128)
    k, v = (_normal(here, batch, keys, groups, 128) for _ in range(2))
    mask = masks.full(batch, 1, keys).to(here.device)
    q_heads, k_heads, v_heads = (x.transpose(1, 2) for x in (q, k, v))
    sides = {
        "megalite": lambda: lambda: attention(q, k, v, mask),
        "SDPA": lambda: (
            lambda: functional.scaled_dot_product_attention(
                q_heads, k_heads, v_heads, enable_gqa=heads != groups
            )
        ),
    }
    name = f"one query, {batch} x {keys} keys, {heads}/{groups} x 128"
    return Duel(name, sides, 2.0 * k.nbytes)


def run(here: Here) -> None:
    """Each case as far as the time goes."""
    clock = Clock(here)
    for duel in duels(here):
        ours = None
        for who, make in duel.sides.items():
            if here.left() < 2:
                here.leave_out(duel.name, "no time left, nor for what comes after it")
                return
            try:
                ms = clock.ms(make())
            except Exception as error:  # a peer that isn't there, or can't
                if who == "megalite":
                    here.note(f"{duel.name}, {who}", one_line(error))
                else:
                    here.leave_out(f"{duel.name}, {who}", one_line(error))
                continue
            ours = ours or ms
            rate = duel.work / ms / (1e9 if duel.unit == "tflops" else 1e6)
            figures = {"ms": ms, duel.unit: rate, "ours_is_faster": ms / ours}
            here.note(f"{duel.name}, {who}", **figures)
