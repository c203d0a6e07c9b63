"""The attention cases of the kernels' benchmark: ours and its peers, on the same mask."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from megalite.ops import attention
from megalite.ops import mask as masks
from megalite.ops.mask import RowIntervals

HEADS, HEAD_DIM, WINDOW = 8, 64, 256
Work = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """Where a benchmark runs, and in which dtype: fp32 on a CPU, 16 bits on a GPU."""

    device: str
    dtype: torch.dtype

    @classmethod
    def here(cls) -> "Place":
        """The GPU, where there is one."""
        if not torch.cuda.is_available():
            return cls("cpu", torch.float32)
        is_ampere = torch.cuda.get_device_capability() >= (8, 0)
        return cls("cuda", torch.bfloat16 if is_ampere else torch.float16)

    def normal(self, *size: int) -> Tensor:
        """Random numbers."""
        return torch.randn(size).to(self.device, self.dtype)


@dataclass(frozen=True)
class Contender:
    """One way to compute a case.

    Attributes:
        name: of it.
        forward: of query, key and value.
        qkv: these, in its layout.
        bias: gets a gradient too, or None.
        upstream: the output's gradient.
    """

    name: str
    forward: Callable[[Tensor, Tensor, Tensor], Tensor]
    qkv: tuple[Tensor, Tensor, Tensor]
    bias: Tensor | None
    upstream: Tensor

    def both_passes(self) -> None:
        """Forward and backward."""
        for leaf in (*self.qkv, self.bias):
            if leaf is not None:
                leaf.grad = None
        self.forward(*self.qkv).backward(self.upstream)

    def forward_alone(self) -> None:
        """Forward, without autograd."""
        with torch.no_grad():
            self.forward(*(x.detach() for x in self.qkv))


SHAPES = {  # batch and length
    "full": (2, 1024),
    "causal": (2, 1024),
    "prefix": (2, 1024),
    "packed4": (2, 1024),
    "packed8": (2, 1024),
    "packed16": (1, 4096),
    "window": (1, 4096),
    "t5_bias": (2, 1024),
}


def make_mask(name: str, batch: int, length: int) -> RowIntervals:
    """The row intervals of a case."""
    if name == "causal":
        return masks.causal(batch, length)
    if name == "prefix":
        return masks.prefix(torch.full((batch,), length // 2), length)
    if name.startswith("packed"):
        return masks.packed([_documents(name, length)] * batch, length)
    if name == "window":
        return masks.window(batch, length, WINDOW)
    return masks.full(batch, length, length)


def _documents(name: str, length: int) -> list[int]:
    count = int(name[6:])
    return [length // count] * count


class AttentionCase:
    """Numbers and mask of a case, and its contenders."""

    def __init__(self, name: str, place: Place) -> None:
        """Make them."""
        self.name, self.place = name, place
        self.batch, self.length = SHAPES[name]
        size = self.batch, self.length, HEADS, HEAD_DIM
        q, k, v = (place.normal(*size).requires_grad_() for _ in range(3))
        self.qkv = q, k, v
        self.upstream = place.normal(*size)
        self.mask = make_mask(name, self.batch, self.length).to(place.device)
        self.bias = None
        if name == "t5_bias":
            bias = torch.randn(HEADS, 2 * self.length - 1, device=place.device)
            self.bias = bias.requires_grad_()

    def flops(self) -> float:
        """Of both passes: two and five products of the allowed pairs."""
        return 3.5 * 4 * HEAD_DIM * HEADS * float((self.mask.end - self.mask.start).sum())

    def ours(self) -> Contender:
        """Our own."""
        return self._rows_first("megalite", lambda *qkv: attention(*qkv, self.mask, self.bias))

    def sdpa(self) -> Contender:
        """PyTorch's: with is_causal, or with a dense mask or bias."""
        is_causal = self.name == "causal"
        is_dense = self.bias is None and not is_causal and self.name != "full"
        dense = self.mask.materialize()[:, None] if is_dense else None
        row = torch.arange(self.length, device=self.place.device)
        distance = row[None] - row[:, None] + self.length - 1

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            given = dense if self.bias is None else self.bias[:, distance][None].to(q.dtype)
            return functional.scaled_dot_product_attention(
                q, k, v, attn_mask=given, is_causal=is_causal
            )

        said = " is_causal" if is_causal else " dense mask" if is_dense else ""
        return self._heads_first(
            "SDPA dense bias" if self.bias is not None else f"SDPA{said}", forward
        )

    def flex(self) -> Contender:
        """PyTorch's FlexAttention, compiled; its block mask is made once, as our plan is."""
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        start, end, length = self.mask.start, self.mask.end, self.length
        bias = self.bias
        if bias is not None and self.place.device == "cpu":
            bias = bias.detach()  # no backward pass is there

        def allowed(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return (start[b, q] <= k) & (k < end[b, q])

        def biased(score: Tensor, _b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return score + bias[h, k - q + length - 1]

        blocks = create_block_mask(allowed, self.batch, None, length, length, self.place.device)
        torch.compiler.reset()  # else the cases before count as recompilations
        run = torch.compile(flex_attention, dynamic=False)
        change = None if bias is None else biased
        return self._heads_first(
            "FlexAttention", lambda q, k, v: run(q, k, v, score_mod=change, block_mask=blocks)
        )

    def flash(self) -> Contender | None:
        """The flash-attn package, where it has the mask.

        Raises:
            ImportError: it is not installed.
        """
        from flash_attn import flash_attn_func, flash_attn_varlen_func

        if self.name.startswith("packed"):
            lengths = torch.tensor([0] + _documents(self.name, self.length) * self.batch)
            bounds = lengths.cumsum(0).to(self.place.device, torch.int32)
            most = int(lengths.max())
            return self._rows_first(
                "flash-attn varlen",
                lambda *qkv: flash_attn_varlen_func(
                    *(x.flatten(0, 1) for x in qkv),
                    *(bounds, bounds, most, most),
                    causal=True,
                ).unflatten(0, (self.batch, self.length)),
            )
        options = {
            "full": {},
            "causal": {"causal": True},
            "window": {"causal": True, "window_size": (WINDOW - 1, 0)},
        }.get(self.name)
        if options is None:
            return None
        return self._rows_first("flash-attn", lambda *qkv: flash_attn_func(*qkv, **options))

    def _rows_first(self, name: str, forward: Callable[..., Tensor]) -> Contender:
        """One that reads [B, S, N, H]."""
        return Contender(name, forward, self.qkv, self.bias, self.upstream)

    def _heads_first(self, name: str, forward: Callable[..., Tensor]) -> Contender:
        """One that reads [B, N, S, H], given contiguous."""
        q, k, v = (x.detach().transpose(1, 2).contiguous().requires_grad_() for x in self.qkv)
        upstream = self.upstream.transpose(1, 2).contiguous()
        return Contender(name, forward, (q, k, v), self.bias, upstream)
