"""A process that gets no more memory says where it was, what it asked for and what was planned."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, get_args

import torch

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import Mesh
from megalite.errors import OutOfMemory
from megalite.plan.stages import StageName, frozen_memory, stage_memory
from megalite.stages.planned import stage_of, work_of
from megalite.training.metrics.device import memory_gib
from megalite.training.watchdog.heartbeat import Heartbeat

GIB = 2**30
SAYS = (  # of PyTorch's allocators, and numpy's; the last one, of libraries that ask for their own
    re.compile(r"Tried to allocate ([\d.]+ \w+)"),
    re.compile(r"you tried to allocate (\d+) bytes"),
    re.compile(r"Unable to allocate ([\d.]+ \w+) for an array"),
    re.compile(r"CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cannot allocate memory"),
)


@contextmanager
def told(config: Any, launch: Launch, mesh: Mesh, heartbeat: Heartbeat) -> Iterator[None]:
    """Tell of memory that isn't there.

    Args:
        config: of the run's stage.
        launch: this process among the run's.
        mesh: its processes.
        heartbeat: knows what this process does.

    Raises:
        OutOfMemory: instead of what the system raised.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        asked = asked_for(error)
        if asked is None:
            raise
        where = f"rank {launch.rank} ({socket.gethostname()}) in step {heartbeat.step}"
        text = f"{where}, {heartbeat.phase}{_micro_batch(heartbeat)}{_stage(mesh)}"
        raise OutOfMemory(
            f"{text}: out of memory: it asked for {asked}, and had {memory_gib(mesh.device):.3g} "
            f"GiB at most{_device(mesh)}; {_planned(config, mesh)}: lower "
            f"--train.micro_batch_size {config.train.micro_batch_size}, recompute activations "
            "(--parallel.recompute), or shard more (--parallel.shard); megalite plan weighs them"
        ) from error


def asked_for(error: BaseException | None) -> str | None:
    """What was asked for when memory wasn't there, by an error or one behind it; None: another."""
    seen = 0
    while error is not None and seen < 9:
        text = str(error)
        for says in SAYS:
            if found := says.search(text):
                amount = found[1] if says.groups else "more"
                return f"{int(amount) / GIB:.3g} GiB" if amount.isdigit() else amount
        if isinstance(error, MemoryError):
            return "more"
        error, seen = error.__cause__ or error.__context__, seen + 1
    return None


def _micro_batch(heartbeat: Heartbeat) -> str:
    """Which one was begun last, where passes are under way."""
    number, count = getattr(heartbeat.model, "under_way", (0, 0))
    return f" of micro-batch {number} of {count}" if number else ""


def _stage(mesh: Mesh) -> str:
    return f", pipeline stage {mesh.pp.rank + 1} of {mesh.pp.size}" if mesh.pp.size > 1 else ""


def _device(mesh: Mesh) -> str:
    if mesh.device.type != "cuda":
        return ""
    return f" of {torch.cuda.mem_get_info(mesh.device)[1] / GIB:.3g} GiB"


def _planned(config: Any, mesh: Mesh) -> str:
    """What the plan says of this process."""
    if config.stage not in get_args(StageName):
        return f"megalite plan has no {config.stage}"
    stage, work = stage_of(config, config.stage), work_of(config)
    stages = stage_memory(stage, work, config.parallel)
    if len(stages) != mesh.pp.size:  # of frozen models on processes of their own
        stages = frozen_memory(stage, work)
    planned = stages[mesh.pp.rank]
    parts = {
        "parameters and optimizer": planned.states,
        "gradients": planned.gradients,
        "gathered": planned.gathered,
        "activations": planned.activations,
        "working": planned.working,
    }
    told = ", ".join(f"{name} {gib:.3g}" for name, gib in parts.items() if gib > 0)
    return f"megalite plan says {planned.tensors:.3g} GiB of tensors ({told})"
