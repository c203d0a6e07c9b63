"""How close results are to fp64, by the ratio of PyTorch's own error, and whether they repeat."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.gpu.here import Here
from megalite import ops
from megalite.ops import AttentionOptions, RowIntervals
from megalite.ops.random import attention_keep

OUTPUT, GRADIENT = 2.0, 3.0  # the most times that our error may be PyTorch's
POISONS = (1 << 12, 1 << 16, 1 << 18, 1 << 22, 1 << 26)  # elements of fp32
Work = Callable[..., Tensor]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: RowIntervals,
    bias: Tensor | None,
    options: AttentionOptions,
) -> Tensor:
    """Attention as one writes it in PyTorch, each product in the tensors' dtype, on their device.

    Args:
        q: [B, Sq, N, H].
        k: [B, Sk, G, H].
        v: [B, Sk, G, H].
        mask: of rows.
        bias: [N, Sq + Sk - 1] by key - query, or None.
        options: scale and dropout.
    """
    ratio, queries, keys = q.shape[2] // k.shape[2], q.shape[1], k.shape[1]
    allowed = mask.materialize()[:, None]  # [B, 1, Sq, Sk]
    used = allowed.any(2)[:, 0, :, None, None]  # [B, Sk, 1, 1]
    k, v = (x.masked_fill(~used, 0.0).repeat_interleave(ratio, 2) for x in (k, v))
    scores = torch.einsum("bqnh,bknh->bnqk", q, k) * options.scale_of(q)
    if bias is not None:
        row = torch.arange(queries, device=q.device)[:, None]
        index = torch.arange(keys, device=q.device) - row + queries - 1
        scores = scores + bias[:, index].to(scores.dtype)
    lowest = torch.finfo(scores.dtype).min
    probabilities = torch.softmax(scores.masked_fill(~allowed, lowest), -1) * allowed
    if options.dropout_p > 0 and options.sample_ids is not None:
        heads = torch.arange(q.shape[2], device=q.device)
        draw = options.dropout_seed, options.dropout_p, options.sample_ids, heads
        keep = attention_keep(*draw, queries, keys)
        probabilities = probabilities * (keep / (1.0 - options.dropout_p)).to(scores.dtype)
    return torch.einsum("bnqk,bknh->bqnh", probabilities, v)


def both_passes(work: Work, inputs: Sequence[Tensor], upstream: Tensor) -> list[Tensor]:
    """The result of ``work`` and the gradient of each input; views stay views."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = work(*leaves)
    out.backward(upstream.to(out.dtype))
    return [out.detach(), *(x.grad for x in leaves if x.grad is not None)]


def error_ratio(ours: Tensor, plain: Tensor, exact: Tensor) -> float:
    """The larger of our largest and mean error, in those of PyTorch; half a rounding is forgiven.

    The rounding is one of the largest exact number, or four in fp32, where sums take many.
    """
    if not torch.isfinite(ours).all():
        return math.inf
    error, theirs = (ours.double() - exact).abs(), (plain.double() - exact).abs()
    rounding = torch.finfo(ours.dtype).eps * max(float(exact.abs().max()), 1e-3) / 2
    rounding *= 4 if ours.dtype == torch.float32 else 1
    largest = float(error.max()) / max(float(theirs.max()), rounding)
    return max(largest, float(error.mean()) / max(float(theirs.mean()), rounding))


def poison(here: Here) -> None:
    """Let the memory that is taken next hold NaN, so that an element that nobody writes shows."""
    if here.device == "cuda":
        sizes = POISONS[:2] if here.is_tiny else POISONS
        filled = [torch.full((size,), math.nan, device=here.device) for size in sizes]
        del filled


class Judge:
    """Compares the checked backend with fp64 and with itself, and notes what is wrong."""

    def __init__(self, here: Here) -> None:
        """Begin with nothing judged."""
        self._here = here
        self.cases, self.faults, self.worst = 0, 0, 0.0

    def judge(
        self,
        name: str,
        sides: tuple[Work, Work, Work],
        inputs: Sequence[Tensor],
        upstream: Tensor,
        repeats: int = 2,
    ) -> None:
        """One case.

        Args:
            name: of it.
            sides: ours, PyTorch's in the same dtypes, and the exact one, given fp64.
            inputs: of all sides; each gets a gradient.
            upstream: gradient of the result.
            repeats: further runs, whose bits must be the same.
        """
        ours, plain, exact = sides
        with ops.backend("reference"):
            truth = both_passes(exact, [x.double() for x in inputs], upstream.double())
            theirs = both_passes(plain, inputs, upstream)
        with ops.backend(self._here.backend):
            poison(self._here)
            first = both_passes(ours, inputs, upstream)
            is_same = True
            for _ in range(repeats):
                poison(self._here)
                again = both_passes(ours, inputs, upstream)
                is_same &= all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        ratios = [error_ratio(*one) for one in zip(first, theirs, truth, strict=True)]
        limits = [OUTPUT] + [GRADIENT] * len(inputs)
        far = [f"{r:.2f} > {m:g}" for r, m in zip(ratios, limits, strict=True) if not r <= m]
        faults = [*(["bits differ"] if not is_same else []), *far]
        self.cases += 1
        self.worst = max(self.worst, *ratios)
        if faults:
            self.faults += 1
            self._here.note(name, "; ".join(faults), ratios=[round(r, 3) for r in ratios])

    def sum_up(self, name: str) -> None:
        """Note how many cases were judged."""
        figures = {"cases": self.cases, "failed": self.faults, "worst_ratio": self.worst}
        self._here.note(name, "" if self.cases else "no case was run", **figures)
