"""Every op and mask against PyTorch: forward and backward in turns, in one process.

    python -m benchmarks.kernels [--quick] [--json] [--plot FILE.png] [--case NAME]

Useful FLOP/s count allowed query-key pairs only: 4 H a pair and head forward, 3.5 times that with
the backward pass (two and five products). ``share_of_gemm`` is against a measured fp32 GEMM of
2048 rows and columns. ``extra_mib`` is the most memory that one call of ours takes beyond its
inputs and gradients, ``peer_extra_mib`` PyTorch's. FlexAttention is no peer on a CPU, where it has
no backward pass.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.duel import held_bytes, peak_bytes, reset_peak
from benchmarks.result import Result, show
from megalite.ops import attention, cross_entropy, linear_cross_entropy, rope, rope_tables
from megalite.ops import mask as masks
from megalite.ops.mask import RowIntervals

HEADS, HEAD_DIM = 8, 64
Work = Callable[[], None]


@dataclass(frozen=True)
class Shape:
    """Of an attention case: batch and length, and what PyTorch is given."""

    batch: int
    length: int
    peer: str


CASES = {
    "full": Shape(2, 1024, "SDPA"),
    "causal": Shape(2, 1024, "SDPA is_causal"),
    "prefix": Shape(2, 1024, "SDPA dense mask"),
    "packed4": Shape(2, 1024, "SDPA dense mask"),
    "packed8": Shape(2, 1024, "SDPA dense mask"),
    "packed16": Shape(1, 4096, "SDPA dense mask"),
    "window": Shape(1, 4096, "SDPA dense mask"),
    "t5_bias": Shape(2, 1024, "SDPA dense bias"),
}


def make_mask(name: str, batch: int, length: int) -> RowIntervals:
    """The row intervals of a case."""
    if name == "causal":
        return masks.causal(batch, length)
    if name == "prefix":
        return masks.prefix(torch.full((batch,), length // 2), length)
    if name.startswith("packed"):
        documents = int(name[6:])
        return masks.packed([[length // documents] * documents] * batch, length)
    if name == "window":
        return masks.window(batch, length, 256)
    return masks.full(batch, length, length)


def attention_sides(name: str) -> tuple[Work, Work, float]:
    """Ours, PyTorch's and the useful FLOPs of forward and backward."""
    shape = CASES[name]
    size = shape.batch, shape.length, HEADS, HEAD_DIM
    q, k, v = (torch.randn(size, requires_grad=True) for _ in range(3))
    upstream = torch.randn(size)
    turned = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in (q, k, v)]
    turned_upstream = upstream.transpose(1, 2).contiguous()
    mask = make_mask(name, shape.batch, shape.length)
    dense = mask.materialize()[:, None] if "dense mask" in shape.peer else None
    bias = torch.randn(HEADS, 2 * shape.length - 1, requires_grad=True)
    row = torch.arange(shape.length)
    distance = row[None] - row[:, None] + shape.length - 1
    has_bias = name == "t5_bias"

    def clear() -> None:
        for x in (q, k, v, bias, *turned):
            x.grad = None

    def ours() -> None:
        clear()
        attention(q, k, v, mask, bias if has_bias else None).backward(upstream)

    def peer() -> None:
        clear()
        given = bias[:, distance][None] if has_bias else dense
        functional.scaled_dot_product_attention(
            *turned, attn_mask=given, is_causal=name == "causal"
        ).backward(turned_upstream)

    pairs = float((mask.end - mask.start).sum())
    return ours, peer, 3.5 * 4 * HEAD_DIM * HEADS * pairs


def rope_sides() -> tuple[Work, Work, float]:
    """RoPE against the usual rotate-half."""
    x = torch.randn(2, 1024, HEADS, HEAD_DIM, requires_grad=True)
    upstream = torch.randn_like(x)
    cos, sin = rope_tables(torch.arange(1024).expand(2, 1024), HEAD_DIM)
    wide_cos, wide_sin = (torch.cat((t, t), -1) for t in (cos, sin))  # [B, S, 1, H]

    def rotate_half(y: Tensor) -> Tensor:
        first, second = y.chunk(2, -1)
        return torch.cat((-second, first), -1)

    def ours() -> None:
        x.grad = None
        rope(x, cos, sin).backward(upstream)

    def peer() -> None:
        x.grad = None
        (x * wide_cos + rotate_half(x) * wide_sin).backward(upstream)

    return ours, peer, 0.0


def cross_entropy_sides() -> tuple[Work, Work, float]:
    """Cross-entropy of logits [2048, 32000]."""
    logits = torch.randn(2048, 32000, requires_grad=True)
    labels = torch.randint(0, 32000, (2048,))

    def ours() -> None:
        logits.grad = None
        cross_entropy(logits, labels).mean().backward()

    def peer() -> None:
        logits.grad = None
        functional.cross_entropy(logits, labels).backward()

    return ours, peer, 0.0


def linear_cross_entropy_sides() -> tuple[Work, Work, float]:
    """Head and loss: [2048, 512] by [32000, 512]."""
    hidden = torch.randn(2048, 512, requires_grad=True)
    weight = (torch.randn(32000, 512) * 0.02).requires_grad_()
    labels = torch.randint(0, 32000, (2048,))

    def clear() -> None:
        hidden.grad = weight.grad = None

    def ours() -> None:
        clear()
        (linear_cross_entropy(hidden, weight, labels) / 2048).backward()

    def peer() -> None:
        clear()
        functional.cross_entropy(functional.linear(hidden, weight), labels).backward()

    return ours, peer, 3 * 2.0 * 2048 * 512 * 32000


OTHERS = {
    "linear_cross_entropy": (linear_cross_entropy_sides, "linear + cross_entropy"),
    "cross_entropy": (cross_entropy_sides, "cross_entropy"),
    "rope": (rope_sides, "rotate-half"),
}


def seconds_of(work: Work) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_of(work: Work) -> float:
    """Most memory that one call takes beyond what it leaves, MiB."""
    work()
    before = held_bytes()
    reset_peak()
    work()
    return (peak_bytes() - before) / 2**20


def gemm_rate() -> float:
    """FLOP/s of a large fp32 product here."""
    a = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds_of(lambda: a @ a) for _ in range(5))


def run_case(name: str, seconds: float, gemm: float) -> Result:
    """Run both sides in turns for about ``seconds``."""
    torch.manual_seed(0)
    sides, peer_name = (
        (attention_sides(name), CASES[name].peer)
        if name in CASES
        else (OTHERS[name][0](), OTHERS[name][1])
    )
    ours, peer, flops = sides
    times: tuple[list[float], list[float]] = ([], [])
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(times[0]) < 3:
        times[0].append(seconds_of(ours))
        times[1].append(seconds_of(peer))
    best, peer_best = min(times[0]), min(times[1])
    more = {"extra_mib": memory_of(ours), "peer_extra_mib": memory_of(peer)}
    if flops:
        more |= {"useful_gflops": flops / best / 1e9, "share_of_gemm": flops / best / gemm}
    return Result(name, peer_name, best, peer_best, more)


def plot(results: list[Result], path: str) -> None:
    """Draw the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    names = [result.case for result in results][::-1]
    bars = axes.barh(names, [result.ratio for result in results][::-1], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1fx", padding=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("times faster than PyTorch, forward and backward, fp32 CPU")
    axes.margins(x=0.15)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*CASES, *OTHERS], help="only this one")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios")
    options = parser.parse_args()
    gemm = gemm_rate()
    results = []
    for name in [options.case] if options.case else [*CASES, *OTHERS]:
        results.append(run_case(name, 1.0 if options.quick else 6.0, gemm))
        show(results[-1], options.json)
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
