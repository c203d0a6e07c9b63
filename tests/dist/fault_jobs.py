"""Jobs of the processes that have faults: a gradient that is no number, groups and their times."""

from typing import Any

import torch
import torch.distributed as dist

from megalite.distributed.launch import Launch
from megalite.distributed.mesh import ParallelConfig, build_mesh
from megalite.training.checkpoint.manager import CheckpointManager, Saving
from megalite.training.faults import Fault, FaultConfig
from megalite.training.learner import Learner
from megalite.training.watchdog.heartbeat import Heartbeat
from tests.dist import jobs


def train_with_nan(launch: Launch, model: str, layout: dict[str, Any], rank: int) -> tuple:
    """Three steps, the second of them with a NaN in one gradient of one rank.

    Returns:
        The whole parameters after each step, and the bad steps counted after each.
    """
    learner = jobs.make_learner(launch, model, layout)
    config = FaultConfig(kind="nan", rank=rank, step=1, phase="reduce")
    learner.heartbeat = Heartbeat(Fault(config, launch))
    parameters, bad = [], []
    for number in range(3):
        learner.heartbeat.step = number
        jobs.step(learner, model, number)
        parameters.append(whole_parameters(learner))
        bad.append(learner.scale.bad_steps)
    return parameters, bad


def whole_parameters(learner: Learner) -> dict[str, torch.Tensor]:
    """Comm: all-gather of each."""
    return {name: jobs.whole(value) for name, value in learner.model.named_parameters()}


def timeouts(launch: Launch, layout: dict[str, Any], model: str) -> list[tuple[str, float]]:
    """Description and timeout of every group of several that a run makes."""
    mesh = build_mesh(launch, ParallelConfig(**layout), "cpu")
    learner = jobs.make_learner(launch, model, layout)
    saving = CheckpointManager("unused", saving=Saving(learner.heartbeat, mesh.timeout))
    known = dist.distributed_c10d._world.pg_group_ranks.items()
    found = [
        (group.group_desc, group._get_backend(torch.device("cpu")).options._timeout.total_seconds())
        for group, ranks in known
        if len(ranks) > 1 and group is not dist.GroupMember.NON_GROUP_MEMBER
    ]
    del saving
    dist.barrier()  # a process that leaves would close connections that others are still making
    return found
