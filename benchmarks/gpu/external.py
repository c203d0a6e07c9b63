"""Checks by programs beside us: compute-sanitizer, Nsight Compute, the project's own tests."""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.gpu.here import Here
from megalite import ops
from megalite.ops import attention
from megalite.ops import mask as masks

ROOT = Path(__file__).parents[2]
FOUND = 9  # exit code by which compute-sanitizer says that it found something
METRICS = {  # Nsight Compute's names, and ours
    "gpu__time_duration.sum": "time",
    "launch__waves_per_multiprocessor": "waves",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "active_warps",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor_pipe",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram",
    "lts__t_sector_hit_rate.pct": "l2_hits",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "bank_conflicts",
    "smsp__average_warps_issue_stalled_long_scoreboard_per_issue_active.ratio": "memory_stall",
    "smsp__average_warps_issue_stalled_barrier_per_issue_active.ratio": "barrier_stall",
}
CORE = list(METRICS)[:3]


def run_words(
    here: Here, words: list[str], more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program from the root of the checkout, for as long as there is time.

    Raises:
        subprocess.TimeoutExpired: the time is over; the program has been ended.
    """
    environment = os.environ | {"PYTHONUNBUFFERED": "1"} | (more or {})
    return subprocess.run(
        words,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=max(here.left(), 1.0),
        check=False,
    )


def tail(done: subprocess.CompletedProcess[str], characters: int = 300) -> str:
    """The end of what a program printed."""
    return (done.stdout + done.stderr).strip()[-characters:]


def own_check(here: Here, name: str, *more: str) -> list[str]:
    """The command of a check, whose results go beside ours."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--check", name, "--folder", str(here.folder)]
    words += ["--rows", str(here.rows.with_suffix(f".{name}.inner")), *more]
    words += ["--seconds", f"{max(here.left() - 5, 2):.0f}"]
    return words + (["--rehearse"] if here.is_rehearsal else [])


def _sanitize(here: Here, tool: str, check: str) -> None:
    program = shutil.which("compute-sanitizer")
    words = own_check(here, check, "--small")
    case = f"{tool} on {check}"
    if program is None:
        done = run_words(here, words)
        here.leave_out(
            case,
            "compute-sanitizer is not here; without it, the same cases run"
            if done.returncode == 0
            else f"and the cases fail: {tail(done)}",
        )
        return
    whole = [program, "--tool", tool, "--error-exitcode", str(FOUND), *words]
    done = run_words(here, whole, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
    said = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", done.stdout + done.stderr)
    fault = "" if done.returncode == 0 else f"exit code {done.returncode}: {tail(done)}"
    here.note(case, fault, said="; ".join(said))


def memcheck(here: Here) -> None:
    """Addresses: attention of every mask, both passes; each allocation stands alone."""
    _sanitize(here, "memcheck", "operators")


def racecheck(here: Here) -> None:
    """Races in shared memory."""
    _sanitize(here, "racecheck", "operators")


def tests(here: Here) -> None:
    """The project's tests of operators, on the device."""
    files = ["tests/kernels/test_attention.py", "tests/kernels/test_rows.py"]
    which = "every_plan" if here.is_rehearsal else "cuda or every_plan"
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files]
    done = run_words(here, [*words, "-k", which])
    said = done.stdout.strip().splitlines()[-1:] or [tail(done)]
    if "No module named" in done.stderr:
        here.leave_out("tests/kernels", tail(done, 120))
    else:
        here.note("tests/kernels", "" if done.returncode == 0 else tail(done), said=said[0])


def attention_once(here: Here) -> None:
    """What Nsight Compute looks at: both passes of attention, twice."""
    shape = (1, 40, 2, 64) if here.is_tiny else (4, 2048, 32, 128)
    dtype = here.dtypes()[0]
    q, k, v = (torch.randn(shape, device=here.device, dtype=dtype) for _ in range(3))
    for x in (q, k, v):
        x.requires_grad_()
    mask = masks.causal(*shape[:2]).to(here.device)
    with ops.backend(here.backend):
        for _ in range(2):
            attention(q, k, v, mask).sum().backward()
    here.wait()


def counters(here: Here) -> None:
    """Nsight Compute's counters of attention, causal, 4 x 2048 rows, 32 heads of 128."""
    program = shutil.which("ncu")
    words = own_check(here, "attention_once")
    if program is None:
        done = run_words(here, words)
        fault = "" if done.returncode == 0 else f", and what it would look at fails: {tail(done)}"
        here.leave_out("counters", f"ncu is not here{fault}")
        return
    look = [program, "--csv", "--clock-control", "none", "-s", "2", "-c", "2"]  # the second time
    look += ["-k", "regex:attention_(forward|backward)", "--metrics"]
    for names in (METRICS, CORE):  # one name that an ncu doesn't know makes it measure nothing
        done = run_words(here, [*look, ",".join(names), *words])
        if found := read_counters(done.stdout):
            break
    for kernel, figures in found.items():
        here.note(kernel, **figures)
    if not found:
        here.note("counters", f"ncu gave none: {tail(done)}")


def read_counters(text: str) -> dict[str, dict[str, float]]:
    """The counters of each kernel, in what ``ncu --csv`` prints; percent, or the unit in the name.

    Args:
        text: its standard output, with other lines before the table.
    """
    lines = text.splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith('"ID"')]
    found: dict[str, dict[str, float]] = {}
    if not heads:
        return found
    for row in csv.DictReader(io.StringIO("\n".join(lines[heads[0] :]))):
        name = METRICS.get(row["Metric Name"] or "")
        if name is None:
            continue
        kernel = re.split(r"[<(]", row["Kernel Name"])[0].removeprefix("void ").split("::")[-1]
        unit = {"%": "_percent", "": "", "warp": "", "inst": ""}.get(row["Metric Unit"])
        key = name + (f"_{row['Metric Unit']}" if unit is None else unit)
        value = (row["Metric Value"] or "").replace(",", "")
        if re.fullmatch(r"[\d.eE+-]+", value):  # n/a: this GPU has no such counter
            found.setdefault(kernel, {})[key] = float(value)
    return found
