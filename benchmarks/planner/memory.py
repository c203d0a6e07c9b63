"""Peak memory of published runs, by their engines' rules and by the planner for this engine.

The rule for what is not tensors - context and fragments - is the planner's in both.

Source: Korthikanti et al. 2022, arXiv:2205.05198, section 4; Rajbhandari et al. 2020,
arXiv:1910.02054; DeepSpeed 0.6, runtime/pipe/schedule.py and runtime/engine.py.
"""

import statistics

from benchmarks.planner.rows import Row, job_of, rows
from megalite.models.part import Part
from megalite.plan.job import Job
from megalite.plan.memory import CONTEXT_GIB, FRAGMENTS, estimate, most, size_of

GB = 1e9
NEAR_GB = 4.0
BUCKET = 5e8  # numbers that DeepSpeed reduces at once: whole tensors until there are so many
LOGITS = 10.0  # bytes: in half precision, in fp32 for the loss, their gradient

BY_DESIGN = {
    "megds": "ZeRO-1 there keeps all gradients in half precision, under bf16 beside all in fp32, "
    "which it reduces from one buffer; FSDP2 here keeps all in fp32 and reduces by block. "
    "Attention there writes its scores, here it does not",
    "meg22": "dropout masks and optimizer states unsharded there; here masks are drawn again",
}


def published_gb(row: Row) -> float:
    """Peak of a run's fullest device by its engine's rules, in GB."""
    if row.values["engine"] != "megds":  # published without context
        return _megatron_tensors(row) / GB
    tensors = max(_deepspeed_tensors(row, is_last) for is_last in (False, True))
    return (CONTEXT_GIB * 2**30 + (1 + FRAGMENTS) * tensors) / GB


def _block_bytes(row: Row) -> tuple[float, float]:
    """Activations of a block of a micro-batch with dropout masks: all but scores, and scores."""
    at, rows_ = row.number, float(job_of(row.name).rows)
    whole = rows_ * at("h") * (34.0 / at("tp") if at("sp") else 10.0 + 24.0 / at("tp"))
    return whole, 5.0 * at("heads") * at("s") * rows_ / at("tp")


def _deepspeed_tensors(row: Row, is_last: bool) -> float:
    """Bytes of tensors on the first or last pipeline process, with full recompute.

    A process has buffers for a micro-batch more than are under way, each with the input of every
    block and the output.
    """
    job, at = job_of(row.name), row.number
    tp, pp, dp = at("tp"), int(at("pp")), at("dp")
    part: Part = job.parts[-1 if is_last else 0]
    parameters = size_of(job.model, part).parameters / tp
    embedding = job.model.vocab_size * job.model.hidden_size / tp
    is_bf16 = at("grad_bytes") == 4
    states = (8.0 + 12.0 / dp if is_bf16 else 4.0 + 16.0 / dp) * parameters
    if is_bf16:
        states += 4.0 * max(embedding, BUCKET)
    buffers = min(2 if is_last else pp + 1, job.micro_batches)
    blocks = part.decoder[1] - part.decoder[0]
    held = states + buffers * (blocks + 1) * 2.0 * job.rows * at("h")
    logits = LOGITS * job.rows * job.model.vocab_size / tp
    return held + max(sum(_block_bytes(row)), logits if is_last else 0.0)


def _megatron_tensors(row: Row) -> float:
    """Bytes of states and activations on the first pipeline process."""
    job, at = job_of(row.name), row.number
    pp, chunks = int(at("pp")), max(int(at("v")), 1)
    whole, scores = _block_bytes(row)
    blocks = max(part.decoder[1] - part.decoder[0] for part in job.parts) * chunks
    flight = float(min(pp, job.micro_batches))
    if chunks > 1:
        flight *= 1.0 + (pp - 1) / (pp * chunks)
    kept = whole + (scores if row.values["recompute"] == "none" else 0.0)
    return 18.0 * job.largest / at("tp") + flight * blocks * kept


def planned_gb(row: Row) -> float:
    """Peak of the fullest device in the same layout of this engine, with its own cut."""
    job: Job = job_of(row.name)
    sizes = {"shard": int(row.number("dp")), "replicate": 1}
    layout = job.parallel.model_copy(update=sizes)
    return most(estimate(job.work, layout)).total * 2**30 / GB


def memory_lines() -> list[str]:
    """What is printed of memory."""
    known = [row for row in rows() if row.memory_gb]
    off = {row.name: published_gb(row) - row.memory_gb for row in known}
    lines = []
    for group in sorted({row.group for row in known}):
        errors = [off[row.name] for row in known if row.group == group]
        near = sum(abs(e) <= NEAR_GB for e in errors)
        lines.append(
            f"memory {group:<16} {len(errors):>3} rows  "
            f"median {statistics.median(errors):+5.1f} GB  within {NEAR_GB:g} GB: {near}"
        )
    lines += [f"by design, {engine}: {words}" for engine, words in BY_DESIGN.items()]
    for row in known:
        note = f"; {row.values['note']}" if abs(off[row.name]) > NEAR_GB else ""
        lines.append(
            f"  {row.name}: {row.memory_gb:g} GB, by its engine's rules {off[row.name]:+.1f}, "
            f"here {planned_gb(row):.0f}{note}"
        )
    for row in rows():
        if not row.fits and not row.memory_gb:
            lines.append(
                f"  {row.name}: ran out of memory; by its engine's rules {published_gb(row):.0f} "
                f"GB, here {planned_gb(row):.0f}"
            )
    return lines
