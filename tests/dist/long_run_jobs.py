"""Jobs of runs that look after themselves, in a layout."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from megalite.distributed.launch import Launch
from megalite.engine.copies import Copies
from megalite.errors import MegaliteError
from megalite.layers.shards import local_part
from megalite.training.learner import Learner
from tests.dist import jobs
from tests.unit.training.runs import BATCH, Run, Texts

SPIKE, STEPS = 36, 40
RAMP = {"start": 4, "increment": 4, "over": "32 samples"}
BAD = range((SPIKE - 1) * BATCH, SPIKE * BATCH)


def curves(launch: Launch, folder: str, layout: dict[str, int]) -> tuple[list, list, str]:
    """A run that goes back before a spike, and one that is told to skip the same samples.

    Returns:
        The metrics of each, and what the first said.
    """
    spikes = {"policy": "rollback", "around": 3, "window": 40 * BATCH}
    back = Run(Path(folder) / "back", Texts(BAD), launch=launch, **layout).go(STEPS, spikes=spikes)
    skip = ((BAD.start - 3, BAD.stop + 3),)
    told = Run(Path(folder) / "told", Texts(BAD), launch=launch, **layout).go(STEPS, skip=skip)
    return back.rows, told.rows, back.log


def ramps(
    launch: Launch, folder: str, layouts: list[dict[str, int]]
) -> list[tuple[list[dict], dict[str, torch.Tensor]]]:
    """Runs while the batch grows: unbroken, broken off, and broken off to go on in another layout.

    Returns:
        The metrics of each, and the means of this process's weights.
    """
    more = {"global_batch_size": 12, "batch_ramp": RAMP, "average": 0.9}

    def breaks(step: int, _learner: Learner) -> None:
        if step == 7:
            raise MegaliteError("broken off in step 7; step 5 is saved")

    def run(name: str, *each: dict[str, int]) -> tuple[list[dict], dict[str, torch.Tensor]]:
        for layout in each[:-1]:
            with suppress(MegaliteError):
                begun = Run(Path(folder) / name, None, 5, launch, asynchronous=False, **layout)
                begun.go(8, breaks, **more)
        ended = Run(Path(folder) / name, None, 5, launch, **each[-1]).go(8, **more)
        means = ended.learner.tensors()
        return ended.rows, {n: jobs.whole(t) for n, t in means.items() if "_average" in n}

    first, other = layouts
    return [run("whole", first), run("same", first, first), run("moved", other, first)]


def copies_after_training(launch: Launch, model: str, layout: dict[str, Any]) -> list[list]:
    """What differs of the copies after some steps, and after a change of each on one rank.

    Returns:
        The differences: of untouched tensors first; of the last rank's copy with one bit
        changed; after all were made equal.
    """
    learner = jobs.make_learner(launch, model, layout)
    for number in range(3):
        jobs.step(learner, model, number)
    copies = Copies(learner.tensors(), learner.mesh)
    found = [copies.differences(learner.tensors())]
    if launch.rank == launch.world_size - 1:
        for tensor in learner.tensors().values():
            local = local_part(tensor)
            if local.numel():
                local.view(-1)[-1:].view(torch.int32).bitwise_xor_(1)
    found.append(copies.differences(learner.tensors()))
    copies.make_equal(learner.tensors(), found[-1])
    found.append(copies.differences(learner.tensors()))
    return [[(d.name, d.wrong, d.right) for d in part] for part in found]


def drifting(launch: Launch, folder: str, layout: dict[str, int]) -> tuple[str, list, str, list]:
    """Runs in which the last rank's copy of a weight changes in step 5.

    Returns:
        Why the run ended; its curve after another start, without the change; what a run said that
        makes copies equal; the curve of an untouched run.
    """

    def run(name: str, **more: Any) -> Run:
        made = Run(Path(folder) / name, every=3, launch=launch, **layout)
        return made.go(8, fault if name != "clean" else None, **more) if more else made

    def fault(step: int, learner: Learner) -> None:
        if step == 5 and launch.rank == launch.world_size - 1:
            weight = dict(learner.model.named_parameters())["decoder.norm.weight"]
            local_part(weight.detach())[0] += 5

    try:
        run("stopped", drift={"every": 2})
        stopped = ""
    except MegaliteError as error:
        stopped = str(error)
    resumed = run("stopped").go(8).rows
    resynced = run("resynced", drift={"every": 2, "policy": "resync"}).log
    return stopped, resumed, resynced, run("clean", drift={"every": 1}).rows


def straggling(launch: Launch, folder: str, layout: dict[str, int]) -> tuple[str, list[dict]]:
    """A run whose last rank sleeps in each step; what it said, and its metrics."""

    def sleep(_step: int, _learner: Learner) -> None:
        if launch.rank == launch.world_size - 1:
            time.sleep(0.4)

    run = Run(Path(folder), launch=launch, **layout)
    run.go(4, sleep, stragglers={"every": 2, "steps": 4})
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return run.log, [json.loads(line) for line in lines]
