"""What bounds the inner loop of each attention kernel, by its disassembly; no GPU is needed.

    python -m benchmarks.sass [--architecture 80] [--all] [--peer FOLDER] [--json]

Counted are the instructions of one iteration over an unmasked tile (benchmarks/disassembly.py). A
quarter of an SM has one warp scheduler and a fourth of everything else, and its warps all run this
loop, so an iteration's clocks by resource, a warp:

    tensor  HMMA.16816 8 (sm_80, 512 flop a clock); HMMA.884 2 (sm_70, 256 flop a clock)
    issue   1 an instruction, predicated off or not
    mufu    8 an instruction: 4 lanes a clock
    shared  the bytes of a warp's LDS, LDSM, STS, LDGSTS and SHFL at 32 a clock (128 an SM); no bank
            conflict, and no lane less for a broadcast

``bound`` is the share of the tensor cores' peak that is left by the busiest of them, ``limit``:
tensor clocks over its clocks. Latency, global memory and what is outside the loop are not in it.

``--peer`` is the source of FlashAttention-2 with its CUTLASS, unpacked (with
``FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE``, ``pip download --no-deps --no-build-isolation
--no-binary :all: flash-attn==2.8.3``): its kernels for sm_80, compiled here with its own flags,
without dropout, ALiBi and windows, join the table; that takes minutes a file.
"""

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path as File

from benchmarks.disassembly import Instruction, Path, hottest, parse
from benchmarks.toolchain import (
    ToolMissing,
    compile_against_torch,
    compile_source,
    demangled,
    disassembled,
    name_of,
    sources,
)

TENSOR_CLOCKS = {"HMMA.16816": 8, "HMMA.884": 2}
LANES, MUFU_CLOCKS, SHARED_BYTES_A_CLOCK = 32, 8, 32
SHARED = ("LDS", "LDSM", "STS", "LDGSTS", "SHFL", "ATOMS")
# Files of FlashAttention-2, and the flags of the plain instances of their kernels: no dropout,
# causal, local, ALiBi; whole tiles and head dimension; no softcap; (forward) no returned softmax.
PEER_FILES = (
    "flash_fwd_hdim64_fp16_sm80.cu",
    "flash_fwd_hdim128_fp16_sm80.cu",
    "flash_bwd_hdim64_fp16_sm80.cu",
    "flash_bwd_hdim128_fp16_sm80.cu",
)
PEER_OPTIONS = (
    *(f"-U__CUDA_NO_{what}__" for what in ("HALF_OPERATORS", "HALF_CONVERSIONS")),
    *(f"-U__CUDA_NO_{what}__" for what in ("HALF2_OPERATORS", "BFLOAT16_CONVERSIONS")),
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "--use_fast_math",
    *(f"-DFLASHATTENTION_DISABLE_{what}" for what in ("DROPOUT", "ALIBI", "LOCAL", "SOFTCAP")),
    "-DFLASHATTENTION_DISABLE_UNEVEN_K",
)
PEER_FLAGS = {
    "flash_fwd_kernel": "false, false, false, false, true, true, false, false",
    "flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel": "false, false, false, false, true, true, false",
}


@dataclass(frozen=True)
class Bound:
    """The clocks of an iteration by resource, and the share of the tensor peak that they leave."""

    kernel: str
    arch: int
    head_dim: int
    tensor_cycles: int
    issue_cycles: int
    mufu_cycles: int
    shared_cycles: int
    bound: float
    limit: str
    counts: dict[str, int]


def tensor_clocks(instruction: Instruction) -> int:
    """Of a tensor-core instruction; 0 of others.

    Raises:
        KeyError: its shape has no rate here.
    """
    if not instruction.is_tensor:
        return 0
    return TENSOR_CLOCKS[".".join(instruction.opcode.split(".")[:2])]


def shared_bytes(instruction: Instruction) -> int:
    """What a warp moves to or from shared memory."""
    if instruction.name not in SHARED or instruction.never_runs:
        return 0
    parts = instruction.opcode.split(".")
    if instruction.name == "LDSM":
        return int(parts[-1]) * 4 * LANES if parts[-1].isdigit() else 4 * LANES
    bits = next((int(part) for part in parts if part in ("64", "128")), 32)
    return bits // 8 * LANES


def pipe(instruction: Instruction) -> str:
    """The group of the table that an instruction is counted in."""
    name = instruction.name
    if instruction.is_tensor or name == "MUFU":
        return name
    if name in SHARED:
        return f"{name}.{shared_bytes(instruction) // LANES * 8}"
    if re.match(r"F(ADD|MUL|FMA|MNMX|SETP|SEL|CHK|2FP|2F)|H(ADD|MUL|FMA)2", name):
        return "float"
    if name in ("BRA", "CALL", "BSSY", "BSYNC", "BAR", "WARPSYNC", "DEPBAR", "LDGDEPBAR", "NOP"):
        return "control"
    if name in ("LDG", "STG", "RED", "LDL", "STL", "LDC", "ULDC", "ATOMG"):
        return "local" if name in ("LDL", "STL") else "global"
    return "integer"


def bound_of(path: Path, kernel: str, architecture: int) -> Bound:
    """The model's answer for the hot path of a kernel."""
    clocks = Counter(
        {
            "tensor": sum(tensor_clocks(i) * n for i, n in path.counts.items()),
            "issue": path.counts.total(),
            "mufu": sum(MUFU_CLOCKS * n for i, n in path.counts.items() if i.name == "MUFU"),
            "shared": sum(shared_bytes(i) * n for i, n in path.counts.items())
            // SHARED_BYTES_A_CLOCK,
        }
    )
    most = max(clocks.values())
    limit = next(name for name, n in clocks.items() if n == most)  # the tensor cores if any are
    counts: Counter[str] = Counter()
    for instruction, n in path.counts.items():
        counts[pipe(instruction)] += n
    return Bound(
        kernel,
        architecture,
        int(re.search(r"\b\d+\b", kernel.partition("<")[2]).group()),
        *(clocks[name] for name in ("tensor", "issue", "mufu", "shared")),
        bound=clocks["tensor"] / most,
        limit=limit,
        counts=dict(sorted(counts.items())),
    )


def bounds_of(cubin: File, architecture: int) -> list[Bound]:
    """One entry for each kernel of a cubin that has a loop with tensor-core instructions."""
    found = []
    for symbol, blocks in parse(disassembled(cubin, architecture)).items():
        path = hottest(blocks)
        if path:
            found.append(bound_of(path, demangled(symbol), architecture))
    return sorted(found, key=lambda entry: (entry.kernel.partition("<")[0], entry.head_dim))


def ours(architecture: int, with_extras: bool) -> list[Bound]:
    """Our kernels in half; those with bias or dropout too if asked."""
    found = []
    for source in sources(architecture):
        name = name_of(source)
        if name.startswith("attention") and "bfloat16" not in name:
            found += bounds_of(compile_source(source, architecture), architecture)
    return [entry for entry in found if with_extras or is_plain(entry.kernel)]


def is_plain(kernel: str) -> bool:
    """Whether one of our kernels has neither bias nor dropout."""
    flags = re.findall(r"\b(?:true|false)\b", kernel)
    return not any(flag == "true" for flag in flags[: 1 if "Traits" in kernel else 2])


def peers(folder: File) -> list[Bound]:
    """FlashAttention-2's kernels for sm_80, those that do the same work.

    Raises:
        FileNotFoundError: the folder is not its source.
    """
    found = []
    folders = ("csrc/flash_attn/src", "csrc/cutlass/include")
    flags = ["-cubin", *(f"-I{folder / each}" for each in folders), *PEER_OPTIONS]
    for name in PEER_FILES:
        source = folder / "csrc/flash_attn/src" / name
        if not source.exists():
            raise FileNotFoundError(f"--peer {folder}: must hold flash-attn 2's source, {source}")
        for entry in bounds_of(compile_against_torch(source, flags), 80):
            kernel, _, arguments = entry.kernel.partition("<")
            kernel = kernel.rpartition("::")[2]
            if not arguments.rstrip("> ").endswith(PEER_FLAGS.get(kernel, "none")):
                continue
            sizes = re.search(r"\d+(?:, \d+)*", arguments).group()
            found.append(Bound(**{**asdict(entry), "kernel": f"{kernel}<{sizes}>"}))
    return found


def markdown(entries: list[Bound]) -> str:
    """The table of a page."""
    lines = [
        "| kernel | sm | H | tensor | issue | mufu | shared | bound | limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for e in entries:
        clocks = (e.tensor_cycles, e.issue_cycles, e.mufu_cycles, e.shared_cycles)
        numbers = " | ".join(str(n) for n in (e.arch, e.head_dim, *clocks))
        lines.append(f"| `{e.kernel}` | {numbers} | {e.bound:.0%} | {e.limit} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, or an object a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--architecture", type=int, choices=(70, 80), help="only this one")
    parser.add_argument("--all", action="store_true", help="kernels with bias or dropout too")
    parser.add_argument("--peer", type=File, help="folder of FlashAttention-2's source")
    parser.add_argument("--json", action="store_true", help="one object a line")
    options = parser.parse_args()
    try:
        entries = peers(options.peer) if options.peer else []
        for architecture in (70, 80) if not options.architecture else (options.architecture,):
            entries += ours(architecture, options.all)
    except (ToolMissing, FileNotFoundError) as wrong:
        print(f"benchmarks.sass: {wrong}", file=sys.stderr)
        sys.exit(2)
    if options.json:
        for entry in entries:
            print(json.dumps(asdict(entry)))
    else:
        print(markdown(entries))


if __name__ == "__main__":
    main()
