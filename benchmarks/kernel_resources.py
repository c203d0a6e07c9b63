"""Registers, shared memory and occupancy of every kernel on every architecture; none may spill.

    python -m benchmarks.kernel_resources [--architecture 70] [--json]
    python -m benchmarks.kernel_resources --binding

Threads and shared memory are those of a launch, as the emulator saw it; registers and spills are
ptxas's. A GPU's blocks share its registers and shared memory: what fits is the occupancy.
--binding compiles csrc/cuda/binding/*.cu instead, host and device code, against PyTorch's headers.
"""

import argparse
import importlib
import json
from dataclasses import dataclass

import torch

from benchmarks.toolchain import (
    ARCHITECTURES,
    ROOT,
    SOURCES,
    Kernel,
    compile_against_torch,
    compile_source,
    kernels_of,
    name_of,
    sources,
)
from megalite.ops import (
    AttentionOptions,
    NormOptions,
    Update,
    activation,
    add_norm,
    attention,
    backend,
    cross_entropy,
    dropout,
    embedding,
    rope,
    rope_tables,
)
from megalite.ops import mask as masks
from megalite.ops.paged_attention import Places, Pools, paged_attention
from megalite.ops.quantised import dequantised, quantised

EXTENSION = ("-DTORCH_API_INCLUDE_EXTENSION_H", "-DTORCH_EXTENSION_NAME=_kernels")
EXTENSION += ("-DMEGALITE_SM70", "-DMEGALITE_SM80", "-DMEGALITE_SM86")
HEAD_DIMS = (32, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Device:
    """What an SM has: CUDA's programming guide, table of compute capabilities."""

    shared_kib: int
    registers: int = 65536
    threads: int = 2048
    blocks: int = 32


DEVICES = {
    70: Device(96),
    80: Device(164),
    86: Device(100, threads=1536, blocks=16),
    89: Device(100, threads=1536, blocks=24),
    90: Device(228),
    100: Device(228),
    120: Device(100, threads=1536, blocks=24),
}


def occupancy(kernel: Kernel, shape: tuple[int, int], architecture: int) -> float:
    """Resident threads an SM, as a share of the most; ``shape`` is (threads, shared bytes)."""
    device = DEVICES[architecture]
    threads, shared_bytes = shape
    warps = -(-threads // 32)
    registers = -(-kernel.registers * 32 // 256) * 256 * warps
    reserved = 1024 if architecture >= 80 else 0  # by the system, for each block
    shared = -(-(shared_bytes + reserved) // 256) * 256
    blocks = min(device.registers // registers, device.threads // (32 * warps), device.blocks)
    if shared:
        blocks = min(blocks, device.shared_kib * 1024 // shared)
    return blocks * 32 * warps / device.threads


def _attend(
    dtype: torch.dtype, head_dim: int, has_bias: bool, dropout_p: float, learns: bool
) -> None:
    heads = (16, 1, 1)  # of one group: so that several blocks share its gradients
    q, k, v = (torch.randn(1, 8, n, head_dim, dtype=dtype, requires_grad=True) for n in heads)
    bias = torch.randn(16, 15, requires_grad=True) if has_bias else None
    options = AttentionOptions(dropout_p=dropout_p, sample_ids=torch.zeros(1, dtype=torch.int64))
    out = attention(q, k, v, masks.causal(1, 8), bias, options)
    if learns:
        out.sum().backward()


def _attend_in_blocks(dtype: torch.dtype) -> None:
    for head_dim in (16, *HEAD_DIMS):
        pools = Pools(*torch.randn(2, 1, 1, 16, head_dim).to(dtype))
        tables, start = torch.zeros(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        places = Places(tables, start, torch.full_like(start, 16), 16)
        q = torch.randn(1, 1, head_dim).to(dtype)
        paged_attention(q, pools, places, None, AttentionOptions())


def _run_rows(dtype: torch.dtype) -> None:
    for size in (64, 65):  # with 16-byte accesses, and without
        x = torch.randn(1, 2, 1, size, dtype=dtype)
        rope(x, *rope_tables(torch.arange(2).expand(1, 2), 64))
        dropout(x[:, :, 0], 0.1, 0, torch.zeros(1, dtype=torch.int64))
    for size in (512, 4128, 16384, 65):  # held by few and by many registers, and read again
        x, weight, bias = (torch.randn(size).to(dtype).requires_grad_() for _ in range(3))
        add_norm(x, Update(x), weight, bias, NormOptions(centred=True))[1].sum().backward()
    for size in (64, 65):
        x, bias = torch.randn(2, size).to(dtype).requires_grad_(), torch.randn(size).to(dtype)
        activation("silu", x, x, bias).sum().backward()
        embedding(x, torch.arange(2)).sum().backward()
        for form in ("nf4", "int8"):
            dequantised(quantised(x.detach(), form), dtype)
    logits, labels = torch.randn(2, 9).to(dtype), torch.arange(2)
    statistics = torch.ops.megalite_simt.logit_statistics(logits, labels, 0)
    torch.ops.megalite_simt.logit_gradient(
        torch.empty_like(logits), logits, statistics[0], labels, statistics[1], 0, 9, 0.0, 0.0
    )
    cross_entropy(logits.float(), labels)


def launch_all() -> dict[str, tuple[int, int]]:
    """Run every kernel once on the emulator: (threads, shared bytes) by mangled name."""
    emulator = importlib.import_module("megalite._simt")
    narrow = [torch.float16, torch.bfloat16]
    types = {70: [torch.float16], 80: narrow, 86: narrow}
    with backend("simt"):
        for dtype in (torch.float16, torch.bfloat16, torch.float32):
            _run_rows(dtype)
            _attend_in_blocks(dtype)
        for architecture, dtypes in types.items():
            emulator.set_architecture(architecture)
            for dtype in dtypes:
                for head_dim in HEAD_DIMS:
                    fits = architecture != 86 or head_dim <= 192  # the backward pass
                    for has_bias in (False, True):
                        for dropout_p in (0.0, 0.5):
                            _attend(dtype, head_dim, has_bias, dropout_p, fits)
    return emulator.shapes()


def table(architectures: list[int]) -> list[dict]:
    """One entry a kernel and architecture.

    Raises:
        KeyError: a compiled kernel has never run on the emulator.
    """
    shapes = launch_all()
    found = []
    for architecture in architectures:
        for source in sources(architecture):
            for kernel in kernels_of(compile_source(source, architecture)):
                if kernel.symbol not in shapes:
                    raise KeyError(f"launch_all() runs no {kernel.name} of {name_of(source)}")
                shape = shapes[kernel.symbol]
                found.append(
                    {
                        "kernel": kernel.name,
                        "architecture": architecture,
                        "threads": shape[0],
                        "shared_bytes": shape[1],
                        "registers": kernel.registers,
                        "spill_bytes": kernel.spill_bytes,
                        "occupancy": occupancy(kernel, shape, architecture),
                    }
                )
    return found


def markdown(entries: list[dict]) -> str:
    """The table of a page: a row a kernel, a column an architecture."""
    architectures = sorted({entry["architecture"] for entry in entries})
    head = ["kernel", "threads", "shared KiB", *(f"sm_{a}" for a in architectures)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    by_kernel: dict[str, dict[int, dict]] = {}
    for entry in entries:
        by_kernel.setdefault(entry["kernel"], {})[entry["architecture"]] = entry
    for name, columns in sorted(by_kernel.items()):
        first = next(iter(columns.values()))
        cells = [f"`{name}`", str(first["threads"]), f"{first['shared_bytes'] / 1024:g}"]
        for architecture in architectures:
            entry = columns.get(architecture)
            spilled = f", spills {entry['spill_bytes']}" if entry and entry["spill_bytes"] else ""
            cells.append(
                f"{entry['registers']}, {entry['occupancy']:.0%}{spilled}" if entry else ""
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the table, or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, choices=tuple(DEVICES), help="only this one")
    parser.add_argument("--json", action="store_true", help="one object a line")
    parser.add_argument("--binding", action="store_true", help="only compile what includes PyTorch")
    options = parser.parse_args()
    if options.binding:
        for source in sorted(SOURCES.glob("binding/*.cu")):
            print(compile_against_torch(source, ["-c", f"-I{ROOT / 'csrc'}", *EXTENSION]))
        return
    chosen = [options.architecture] if options.architecture else list(ARCHITECTURES)
    entries = table(chosen)
    if options.json:
        for entry in entries:
            print(json.dumps(entry))
    else:
        print(markdown(entries), end="")


if __name__ == "__main__":
    main()
