"""Kernels beside their peers at real sizes: CUDA events, a cold L2, the median of many calls."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.here import Here, one_line
from megalite.ops import RowIntervals, attention
from megalite.ops import mask as masks

Call = Callable[[], object]
Peer = tuple[str, Callable[..., Tensor], AbstractContextManager[None]]  # its kernels in a context
Passes = tuple[float, float]  # ms of the forward pass, and of the backward pass
SDPA = {"SDPA flash": SDPBackend.FLASH_ATTENTION, "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION}
LEAST_CALLS, MOST_CALLS = 5, 50


class Clock:
    """Times calls on the device."""

    def __init__(self, here: Here) -> None:
        """Take memory to push everything else out of the L2 with."""
        self._here = here
        self._flush = None
        if here.device == "cuda":
            cache = torch.cuda.get_device_properties(0).L2_cache_size
            self._flush = torch.empty(4 * cache, dtype=torch.int8, device="cuda")

    def ms(self, call: Call, seconds: float = 0.15) -> float:
        """Milliseconds of a call: the median over about ``seconds``, after two that don't count."""
        call()
        if self._flush is None:
            started = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - started)
        call()
        self._here.wait()
        times: list[float] = []
        until = time.monotonic() + seconds
        while len(times) < LEAST_CALLS or (time.monotonic() < until and len(times) < MOST_CALLS):
            self._flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return statistics.median(times)


@dataclass(frozen=True)
class Case:
    """An attention that is timed: B sequences of S rows, N query and G key heads of H.

    Attributes:
        name: of it.
        mask: of rows, [B, S].
        heads: N and G.
        head_dim: H.
        is_causal: whether SDPA's own flag says the same.
    """

    name: str
    mask: RowIntervals
    heads: tuple[int, int]
    head_dim: int
    is_causal: bool = False


def cases(is_tiny: bool) -> Iterator[Case]:
    """What models train with, the usual first."""
    if is_tiny:
        yield Case("causal 1 x 64, 2 x 32", masks.causal(1, 64), (2, 2), 32, True)
        yield Case("window 8, 1 x 64, 2 x 32", masks.window(1, 64, 8), (2, 2), 32)
        return
    for batch, length, heads, size in (
        (4, 2048, (32, 32), 128),
        (1, 8192, (32, 32), 128),
        (1, 8192, (32, 8), 128),
        (8, 2048, (16, 16), 64),
        (2, 2048, (32, 1), 128),
        (1, 2048, (8, 8), 128),
        (16, 512, (32, 32), 128),
        (2, 4096, (8, 8), 256),
    ):
        name = f"causal {batch} x {length}, {heads[0]}/{heads[1]} x {size}"
        yield Case(name, masks.causal(batch, length), heads, size, True)
    yield Case("full 1 x 8192, 32/32 x 128", masks.full(1, 8192, 8192), (32, 32), 128)
    documents = masks.packed([[256] * 16] * 4, 4096)
    yield Case("packed 16 of 256, 4 x 4096, 32/32 x 128", documents, (32, 32), 128)
    yield Case("window 512, 2 x 8192, 32/32 x 128", masks.window(2, 8192, 512), (32, 32), 128)


def passes(clock: Clock, run: Callable[..., Tensor], inputs: list[Tensor], up: Tensor) -> Passes:
    """Milliseconds of both passes."""
    with torch.no_grad():
        forward = clock.ms(lambda: run(*inputs))
    out = run(*inputs)

    def backward() -> None:
        for x in inputs:
            x.grad = None
        out.backward(up, retain_graph=True)

    return forward, clock.ms(backward)


class _Flex:
    """FlexAttention with a mask, compiled at the first call; its block mask is made once."""

    def __init__(self, mask: RowIntervals, is_grouped: bool) -> None:
        self._mask, self._is_grouped = mask, is_grouped
        self._run: Callable[..., Tensor] | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._run is None:
            self._run = self._compiled()
        return self._run(q, k, v)

    def _compiled(self) -> Callable[..., Tensor]:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        start, end = self._mask.start, self._mask.end

        def allowed(b: Tensor, _h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (start[b, i] <= j) & (j < end[b, i])

        (batch, rows), keys = start.shape, self._mask.num_keys
        blocks = create_block_mask(allowed, batch, None, rows, keys, str(start.device))
        torch.compiler.reset()
        run = torch.compile(flex_attention, dynamic=False)
        return lambda q, k, v: run(q, k, v, block_mask=blocks, enable_gqa=self._is_grouped)


def attend(here: Here, clock: Clock, case: Case, has_flex: bool) -> None:
    """One case, ours and each peer that has it."""
    mask, (batch, rows), keys = case.mask.to(here.device), case.mask.start.shape, case.mask.num_keys
    (heads, groups), size = case.heads, case.head_dim
    dtype = torch.float32 if here.is_rehearsal else here.dtypes()[0]
    shapes = (rows, heads), (keys, groups), (keys, groups), (rows, heads)
    q, k, v, upstream = (
        torch.randn(batch, length, count, size, device=here.device, dtype=dtype)
        for length, count in shapes
    )
    inputs = [x.requires_grad_() for x in (q, k, v)]
    flops = 4.0 * size * heads * float((mask.end - mask.start).clamp(min=0).sum())
    ours = passes(clock, lambda q, k, v: attention(q, k, v, mask), inputs, upstream)
    extra = _extra_mib(here, lambda: attention(q, k, v, mask).backward(upstream))
    _note(here, case.name, "megalite", ours, flops, extra_mib=extra)
    turned = [x.detach().transpose(1, 2).contiguous().requires_grad_() for x in inputs]
    above = upstream.transpose(1, 2).contiguous()
    for name, run, chosen in _peers(case, mask, has_flex and not here.is_rehearsal):
        if here.left() < 3:
            return
        try:
            with chosen if here.device == "cuda" else nullcontext():
                _note(here, case.name, name, passes(clock, run, turned, above), flops, ours)
        except Exception as error:  # a peer that has no such case, or isn't there
            here.leave_out(f"{case.name}, {name}", one_line(error))


def _peers(case: Case, mask: RowIntervals, has_flex: bool) -> Iterator[Peer]:
    is_grouped = case.heads[0] != case.heads[1]
    is_full = bool((mask.start == 0).all() and (mask.end == mask.num_keys).all())

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=case.is_causal, enable_gqa=is_grouped
        )

    for name, kind in SDPA.items() if case.is_causal or is_full else ():
        yield name, sdpa, sdpa_kernel([kind])
    if has_flex:
        yield "FlexAttention", _Flex(mask, is_grouped), nullcontext()


def _note(
    here: Here,
    case: str,
    who: str,
    ms: Passes,
    flops: float,
    ours: Passes | None = None,
    **more: float,
) -> None:
    """Both passes: ms, TFLOP/s of allowed pairs, and how many times faster ours are."""
    figures = {"forward_ms": ms[0], "backward_ms": ms[1]}
    figures["forward_tflops"], figures["backward_tflops"] = (
        factor * flops / part / 1e9 for factor, part in zip((1.0, 2.5), ms, strict=True)
    )
    figures["both_tflops"] = 3.5 * flops / sum(ms) / 1e9
    if ours is not None:
        more["ours_is_faster"] = sum(ms) / sum(ours)
    here.note(f"{case}, {who}", **figures, **more)


def _extra_mib(here: Here, call: Call) -> float:
    """Most memory that a call takes beyond what is there before."""
    if here.device == "cpu":
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _ceilings(here: Here, clock: Clock) -> None:
    """What the card gives at best: a product of matrices, and a copy."""
    size = 128 if here.is_tiny else 8192
    dtype = torch.float32 if here.is_rehearsal else here.dtypes()[0]
    a, b = (torch.randn(size, size, device=here.device, dtype=dtype) for _ in range(2))
    tflops = 2 * size**3 / clock.ms(lambda: a @ b) / 1e9
    x = torch.empty(1 << (20 if here.is_tiny else 30), device=here.device, dtype=dtype)
    y = torch.zeros_like(x)
    gb_s = 2 * x.nbytes / clock.ms(lambda: y.copy_(x)) / 1e6
    here.note("the card", gemm_tflops=tflops, copy_gb_per_s=gb_s)


def run(here: Here) -> None:
    """What the card gives at best, then attention, as far as the time goes."""
    clock = Clock(here)
    _ceilings(here, clock)
    every = list(cases(here.is_tiny))
    for number, case in enumerate(every):
        if here.left() < 4:
            here.leave_out(case.name, f"no time left, nor for {len(every) - number - 1} after it")
            return
        is_odd_mask = not case.is_causal
        attend(here, clock, case, has_flex=number == 0 or is_odd_mask)
