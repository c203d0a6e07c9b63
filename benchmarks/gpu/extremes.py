"""What only a GPU can show: long sequences, many repetitions, more than 2^31 elements."""

import torch

from benchmarks.gpu.exactness import Judge
from benchmarks.gpu.here import Here
from benchmarks.gpu.operators import Case, judge
from megalite.ops import RowIntervals, attention, rope, rope_tables
from megalite.ops import mask as masks

REPEATS = 20
HEADS, SIZE, WINDOW = 64, 128, 200
GIB = 2**30


def run(here: Here) -> None:
    """Long and wide attention against fp64, with equal bits in 20 runs; then large tensors."""
    length, many = (96, (2, 33)) if here.is_tiny else (8192, (8, 512))
    repeats = 2 if here.is_tiny else REPEATS
    judged, dtype = Judge(here), here.dtypes()[0]
    documents = [[length // 16] * 16]
    for name, case in {
        f"causal, S {length}": Case(masks.causal(1, length), (1, 1), 128, dtype),
        f"packed, S {length}, 2/1 heads": Case(masks.packed(documents, length), (2, 1), 64, dtype),
        f"causal, {many[0]} x {many[1]}, many heads": Case(
            masks.causal(*many), (4, 4) if here.is_tiny else (64, 64), 64, dtype
        ),
    }.items():
        judge(here, judged, name, case, repeats)
    judged.sum_up(f"long and wide attention, equal bits in {repeats} runs")
    beyond_32_bits(here)


def beyond_32_bits(here: Here) -> None:
    """Attention and RoPE where indices need more than 32 bits: the last rows as if alone."""
    length = (1 << 18) + 128  # 2^31 elements, and 8 Mi more
    name = f"{length * HEADS * SIZE:.3g} elements"
    if here.is_tiny:
        here.leave_out(name, "a rehearsal has no memory for it")
        return
    free = torch.cuda.mem_get_info()[0]
    if free < 40 * GIB:
        here.leave_out(name, f"needs 40 GiB, {free / GIB:.0f} are free")
        return
    dtype, device = here.dtypes()[0], here.device
    q, k, v = (torch.randn(1, length, HEADS, SIZE, device=device, dtype=dtype) for _ in range(3))
    mask, rows, keys = masks.window(1, length, WINDOW).to(device), 256, 256 + WINDOW
    first = length - keys
    with torch.no_grad():
        out = attention(q, k, v, mask)[:, -rows:]
        last_q, last_k, last_v = (x[:, first:].contiguous() for x in (q, k, v))
        part = slice(length - rows, length)
        short = RowIntervals(mask.start[:, part] - first, mask.end[:, part] - first, keys)
        alone = attention(last_q[:, -rows:].contiguous(), last_k, last_v, short)
        error = float((out - alone).abs().max())
        limit = 4 * torch.finfo(dtype).eps * float(alone.abs().max())  # tiles begin elsewhere
        here.note(name, "" if error <= limit else f"{error:.2g} > {limit:.2g}", largest=error)
        cos, sin = rope_tables(torch.arange(length, device=device)[None], SIZE)
        turned = rope(q, cos, sin)[:, -rows:]
        same = torch.equal(turned, rope(last_q[:, -rows:], cos[:, -rows:], sin[:, -rows:]))
        here.note(f"rope, {name}", "" if same else "the last rows have other bits")
