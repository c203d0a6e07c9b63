"""Peak memory of published runs against the planner's rule for what is not tensors.

The runs' engines keep other states than this one (ZeRO-1 where this has FSDP2) and dropout masks,
which this one draws again. Their tensors are counted by their own formulas; context and fragments
are the planner's.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4; Rajbhandari et al. 2020,
arXiv:1910.02054.
"""

import statistics

from benchmarks.planner.rows import Row, job_of, rows
from megalite.plan.memory import CONTEXT_GIB, FRAGMENTS

GB = 1e9


def published_tensors(row: Row) -> float:
    """Bytes of tensors on the first pipeline process of a run, by its engine's rules."""
    job, at = job_of(row.name), row.number
    tp, pp, dp = int(at("tp")), int(at("pp")), int(at("dp"))
    parameters = job.largest / tp
    if row.values["engine"] != "megds":
        states = 18.0 * parameters
    elif at("grad_bytes") == 4:
        states = (8.0 + 12.0 / dp) * parameters
    else:
        states = (4.0 + 16.0 / dp) * parameters
    rows_, width, length = float(job.rows), at("h"), at("s")
    scores = 5.0 * at("heads") * length * rows_ / tp
    whole = rows_ * width * (34.0 / tp if at("sp") else 10.0 + 24.0 / tp)
    blocks = max(part.decoder[1] - part.decoder[0] for part in job.parts) * max(int(at("v")), 1)
    flight = min(pp, job.micro_batches)
    if at("v") > 1:
        flight *= 1.0 + (pp - 1) / (pp * at("v"))
    if row.values["recompute"] == "full":
        return states + flight * blocks * 2.0 * rows_ * width + whole + scores
    kept = whole + (scores if row.values["recompute"] == "none" else 0.0)
    return states + flight * blocks * kept


def predicted_gb(row: Row) -> float:
    """Peak of a run's fullest device, in GB."""
    tensors = published_tensors(row)
    if row.group.startswith("korth"):  # published without context
        return tensors / GB
    logits = 10.0 * row.number("mbs") * row.number("s") * row.number("V") / row.number("tp")
    return (CONTEXT_GIB * 2**30 + (1 + FRAGMENTS) * tensors + logits) / GB


def memory_lines() -> list[str]:
    """What is printed of memory."""
    known = [row for row in rows() if row.memory_gb]
    off = {row.name: predicted_gb(row) - row.memory_gb for row in known}
    lines = []
    for group in sorted({row.group for row in known}):
        errors = [off[row.name] for row in known if row.group == group]
        near = sum(abs(e) <= 4.0 for e in errors)
        lines.append(
            f"memory {group:<16} {len(errors):>3} rows  "
            f"median {statistics.median(errors):+5.1f} GB  within 4 GB: {near}"
        )
    lines += [
        f"  {row.name}: {off[row.name]:+.1f} GB of {row.memory_gb:g}"
        for row in known
        if abs(off[row.name]) > 4.0
    ]
    for row in rows():
        if not row.fits and not row.memory_gb:
            lines.append(f"  {row.name} ran out of memory; predicted {predicted_gb(row):.0f} GB")
    return lines
