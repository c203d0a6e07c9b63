"""Every op and mask against PyTorch and flash-attn: both passes in turns, in one process.

    python -m benchmarks.kernels [--quick] [--json] [--plot FILE.png] [--case NAME]

On a CPU in fp32 against SDPA, and without ``--quick`` also the forward pass alone against
FlexAttention, which has no backward pass there. On a GPU in bf16 (fp16 before sm_80) against SDPA,
FlexAttention and, where it is installed, flash-attn; a peer that is left out is told on stderr.

Useful FLOP/s count allowed query-key pairs only: 4 H a pair and head forward, 3.5 times that with
the backward pass (two and five products). ``share_of_gemm`` is against a measured product of
matrices of 2048 rows and columns in the same dtype. ``extra_mib`` is the most memory that one call
of ours takes beyond its inputs and gradients, ``peer_extra_mib`` the peer's.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.attention_cases import (
    HEAD_DIM,
    HEADS,
    SHAPES,
    AttentionCase,
    Contender,
    Place,
    Work,
)
from benchmarks.duel import held_bytes, peak_bytes, reset_peak
from benchmarks.result import Result, show
from megalite.ops import cross_entropy, embedding, linear_cross_entropy, rope, rope_tables
from megalite.ops.matrix_product import product

HERE = Place.here()
IS_GPU = HERE.device == "cuda"


class _Projected(torch.autograd.Function):
    """``values`` as if a projection had just made them of ``source``: no leaf, so free for use."""

    @staticmethod
    def forward(ctx, source: Tensor, values: Tensor) -> Tensor:
        return values.detach()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


def rope_sides() -> tuple[Work, Work, float]:
    """RoPE over a projection's output, in place, against the usual rotate-half of it."""
    values = HERE.normal(2, 1024, HEADS, HEAD_DIM)
    source = torch.empty_like(values, requires_grad=True)
    upstream = torch.randn_like(values)
    positions = torch.arange(1024, device=HERE.device).expand(2, 1024)
    cos, sin = rope_tables(positions, HEAD_DIM)
    wide_cos, wide_sin = (torch.cat((t, t), -1).to(HERE.dtype) for t in (cos, sin))  # [B, S, 1, H]

    def rotate_half(y: Tensor) -> Tensor:
        first, second = y.chunk(2, -1)
        return torch.cat((-second, first), -1)

    def ours() -> None:
        source.grad = None
        rope(_Projected.apply(source, values), cos, sin, in_place=True).backward(upstream)

    def peer() -> None:
        source.grad = None
        x = _Projected.apply(source, values)
        (x * wide_cos + rotate_half(x) * wide_sin).backward(upstream)

    return ours, peer, 0.0


def cross_entropy_sides() -> tuple[Work, Work, float]:
    """Cross-entropy of logits [2048, 32000]."""
    logits = HERE.normal(2048, 32000).requires_grad_()
    labels = torch.randint(0, 32000, (2048,)).to(HERE.device)

    def ours() -> None:
        logits.grad = None
        cross_entropy(logits, labels).mean().backward()

    def peer() -> None:
        logits.grad = None
        functional.cross_entropy(logits, labels).backward()

    return ours, peer, 0.0


def linear_cross_entropy_sides() -> tuple[Work, Work, float]:
    """Head and loss: [2048, 512] by [32000, 512]."""
    hidden = HERE.normal(2048, 512).requires_grad_()
    weight = (HERE.normal(32000, 512) * 0.02).requires_grad_()
    labels = torch.randint(0, 32000, (2048,)).to(HERE.device)

    def clear() -> None:
        hidden.grad = weight.grad = None

    def ours() -> None:
        clear()
        (linear_cross_entropy(hidden, weight, labels) / 2048).backward()

    def peer() -> None:
        clear()
        functional.cross_entropy(functional.linear(hidden, weight), labels).backward()

    return ours, peer, 3 * 2.0 * 2048 * 512 * 32000


def embedding_sides() -> tuple[Work, Work, float]:
    """2048 tokens of 32000, width 512, half of them one token; the gradient is whole."""
    weight = HERE.normal(32000, 512).requires_grad_()
    tokens = torch.randint(0, 32000, (2, 1024))
    tokens = torch.where(torch.rand(tokens.shape) < 0.5, 7, tokens).to(HERE.device)
    upstream = HERE.normal(2, 1024, 512)

    def ours() -> None:
        weight.grad = None
        embedding(weight, tokens).backward(upstream)

    def peer() -> None:
        weight.grad = None
        functional.embedding(tokens, weight).backward(upstream)

    return ours, peer, 0.0


OTHERS = {
    "linear_cross_entropy": (linear_cross_entropy_sides, "linear + cross_entropy"),
    "cross_entropy": (cross_entropy_sides, "cross_entropy"),
    "rope": (rope_sides, "rotate-half"),
    "embedding": (embedding_sides, "embedding"),
}


def seconds_of(work: Work) -> float:
    """Time of one call."""
    started = time.perf_counter()
    work()
    if IS_GPU:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def memory_of(work: Work) -> float:
    """Most memory that one call takes beyond what it leaves, MiB."""
    work()
    if IS_GPU:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = held_bytes()
    reset_peak()
    work()
    return (peak_bytes() - before) / 2**20


@cache
def gemm_rate() -> float:
    """FLOP/s of a large product here."""
    a = HERE.normal(2048, 2048)
    return 2 * 2048**3 / min(seconds_of(lambda: product(a, a)) for _ in range(5))


def compare(case: str, peer_name: str, sides: tuple[Work, Work, float], seconds: float) -> Result:
    """Run both sides in turns for about ``seconds``."""
    ours, peer, flops = sides
    times: tuple[list[float], list[float]] = ([], [])
    until = 0.0
    while time.perf_counter() < until or len(times[0]) < 3:
        times[0].append(seconds_of(ours))
        times[1].append(seconds_of(peer))
        until = until or time.perf_counter() + seconds  # a first call may compile
    best, peer_best = min(times[0]), min(times[1])
    more = {"extra_mib": memory_of(ours), "peer_extra_mib": memory_of(peer)}
    if flops:
        more |= {"useful_gflops": flops / best / 1e9, "share_of_gemm": flops / best / gemm_rate()}
    return Result(case, peer_name, best, peer_best, more)


def peers_of(case: AttentionCase) -> Iterator[Contender]:
    """Who computes both passes of an attention case here."""
    yield case.sdpa()
    if not IS_GPU:
        return
    for make in (case.flex, case.flash):
        try:
            peer = make()
        except ImportError as error:
            print(f"{case.name}: without {make.__name__}: {error}", file=sys.stderr)
            continue
        if peer is None:
            print(f"{case.name}: without {make.__name__}: has no such mask", file=sys.stderr)
        else:
            yield peer


def run_attention(name: str, seconds: float, has_flex: bool) -> Iterator[Result]:
    """An attention case against each peer, ``seconds`` for all."""
    torch.manual_seed(0)
    case = AttentionCase(name, HERE)
    ours, flops = case.ours(), case.flops()
    for peer in peers_of(case):
        yield compare(name, peer.name, (ours.both_passes, peer.both_passes, flops), seconds)
    if has_flex and not IS_GPU:
        peer = case.flex()
        sides = ours.forward_alone, peer.forward_alone, flops / 3.5
        yield compare(f"{name} forward", peer.name, sides, seconds / 3)


def run_case(name: str, is_quick: bool) -> Iterator[Result]:
    """A case of any op."""
    seconds = 1.0 if is_quick else 6.0
    if name in SHAPES:
        yield from run_attention(name, seconds, not is_quick)
        return
    torch.manual_seed(0)
    make_sides, peer = OTHERS[name]
    yield compare(name, peer, make_sides(), seconds)


def plot(results: list[Result], path: str) -> None:
    """Draw the ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), constrained_layout=True)
    names = [f"{result.case}, {result.peer}" for result in results][::-1]
    bars = axes.barh(names, [result.ratio for result in results][::-1], color="#3b6ea5")
    axes.bar_label(bars, fmt="%.1fx", padding=3)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel(
        f"times faster, forward and backward, {str(HERE.dtype)[6:]} on a {HERE.device.upper()}"
    )
    axes.margins(x=0.15)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=[*SHAPES, *OTHERS], help="only this one")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the ratios")
    options = parser.parse_args()
    gemm_rate()
    results = []
    for name in [options.case] if options.case else [*SHAPES, *OTHERS]:
        for result in run_case(name, options.quick):
            results.append(result)
            show(result, options.json)
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
