"""The frozen models of PPO on processes of their own, and what passes between them and the actor's.

The run's last processes hold the reference and the reward model in a layout of their own; the
others hold actor and critic and do all that a run does. Each data-parallel rank of the actor is
served by one copy of the frozen models:

    actor's rank           rings in the store, sends its answers      -> every process of the copy
    first process of copy  sends log-probabilities and scores back    -> every process of that rank

A copy takes the answers of all its ranks before it judges, so no rank waits for one that waits for
it. Between two rollouts it looks into the store and is in no collective: an update may take longer
than a group's timeout.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.distributed.mesh import Mesh, ParallelConfig
from megalite.engine.layout import Demand, faults, nearest
from megalite.errors import ConfigError, Stopped
from megalite.stages.rlhf.responses import Responses
from megalite.stages.rlhf.rollout import FrozenModels, Pending
from megalite.torch_private import default_store
from megalite.training.heartbeat import WAIT, Heartbeat
from megalite.training.trainer import StopSignal

PAUSE_S = 0.01


class FrozenConfig(Section):
    """Where reference and reward model are: with actor and critic, or on their own processes."""

    processes: int = Field(
        0,
        ge=0,
        description="the run's last ones, for these two alone; 0: those of actor and critic",
    )
    tp: int = Field(1, ge=1, description="processes a layer's matrices are split over")
    pp: int = Field(1, ge=1, description="pipeline stages, in processes")
    shard: int = Field(1, ge=1, description="processes that parameters are split over")

    def layout(self, parallel: ParallelConfig) -> ParallelConfig:
        """Their layout; what it doesn't say is the run's. They never look back, nor recompute."""
        passes = {"schedule": "1f1b", "chunks_per_rank": 1, "encoder_stages": 0}
        sizes = {"tp": self.tp, "pp": self.pp, "shard": self.shard, "replicate": 0}
        return parallel.model_copy(update={**passes, **sizes, "recompute": "none"})


def check_placement(demand: Demand, parallel: ParallelConfig, frozen: FrozenConfig) -> None:
    """Refuse a placement that doesn't fit.

    Args:
        demand: of the whole run.
        parallel: the layout of actor and critic.
        frozen: the placement.

    Raises:
        ConfigError: it says what is wrong, and the nearest placements that fit.
    """
    fault = placement_fault(demand, parallel, frozen)
    if fault is None:
        return
    fits = [
        f"processes {other.processes} tp {other.tp}"
        for other in _near(frozen, demand.world_size)
        if placement_fault(demand, parallel, other) is None
    ]
    offer = f"; placements that fit: {', or '.join(fits[:3])}" if fits else ""
    rest = demand.world_size - frozen.processes
    if not fits and rest > 0:
        layouts = nearest(_part(demand, rest), parallel)
        if layouts:
            offer = f"; layouts of the other {rest} that fit: {', or '.join(layouts)}"
    raise ConfigError(f"--frozen.processes {frozen.processes}: {fault}{offer}")


def _near(frozen: FrozenConfig, world_size: int) -> list[FrozenConfig]:
    """Other placements of a run, those that differ least first."""
    counts = range(1, world_size)
    sizes = [(count, tp) for count in counts for tp in range(1, count + 1) if count % tp == 0]
    sizes.sort(key=lambda size: (abs(size[0] - frozen.processes), abs(size[1] - frozen.tp)))
    return [frozen.model_copy(update={"processes": count, "tp": tp}) for count, tp in sizes]


def placement_fault(demand: Demand, parallel: ParallelConfig, frozen: FrozenConfig) -> str | None:
    """What is wrong with a placement; None where it fits."""
    own, rest = frozen.processes, demand.world_size - frozen.processes
    layout = frozen.layout(parallel)
    if own == 0:
        is_set = (frozen.tp, frozen.pp, frozen.shard) != (1, 1, 1)
        return "tp, pp and shard need processes of their own" if is_set else None
    if rest < 1:
        return f"leaves none of {demand.world_size} to actor and critic"
    found = next(faults(_part(demand, rest), parallel), None)
    if found is not None:
        return f"leaves {rest} to actor and critic, where {found}"
    found = next(faults(Demand(demand.model, own), layout), None)
    if found is not None:
        return found.replace("--parallel", "--frozen")
    ranks, copies = Side.of(0, rest, parallel).dp, Side.of(rest, own, layout).dp
    if ranks % copies:
        return (
            f"has {copies} data-parallel ranks, which must divide the {ranks} of actor and critic"
        )
    return None


def _part(demand: Demand, world_size: int) -> Demand:
    sizes = demand.global_batch_size, demand.micro_batch_size, demand.updates
    return Demand(demand.model, world_size, *sizes)


@dataclass(frozen=True)
class Side:
    """The processes of one mesh, in the order of :data:`megalite.distributed.mesh._AXES`.

    Attributes:
        first: its first rank in the run.
        pp: pipeline stages.
        dp: data-parallel ranks.
        tp: processes of a tensor-parallel group.
    """

    first: int
    pp: int
    dp: int
    tp: int

    @classmethod
    def of(cls, first: int, count: int, parallel: ParallelConfig) -> "Side":
        """The side of ``count`` processes in a layout."""
        pp, replicate, shard, tp = parallel.sizes(count)
        return cls(first, pp, replicate * shard, tp)

    def ranks(self, number: int) -> list[int]:
        """The processes of a data-parallel rank, by their ranks in the run."""
        return [
            self.first + (stage * self.dp + number) * self.tp + tp
            for stage in range(self.pp)
            for tp in range(self.tp)
        ]


@dataclass(frozen=True)
class Request:
    """What a copy of the frozen models is sent.

    Attributes:
        step: under way.
        responses: to judge; None ends the run.
        micro_batch_size: answers a forward pass.
        stopped: why the run ends before its last step.
    """

    step: int
    responses: Responses | None = None
    micro_batch_size: int = 0
    stopped: str = ""


class Bridge:
    """Who asks whom, and the group and store to do it with."""

    def __init__(self, actor: Side, frozen: Side, mesh: Mesh) -> None:
        """Make the group. Comm: every process of the run calls this."""
        self.actor, self.frozen, self.mesh = actor, frozen, mesh
        self.group = dist.new_group(timeout=mesh.timeout, backend="gloo", group_desc="frozen")
        self._store = dist.PrefixStore("frozen", default_store())
        self._requests = 0

    def copy_of(self, rank: int) -> list[int]:
        """The processes that serve a data-parallel rank of the actor."""
        return self.frozen.ranks(rank * self.frozen.dp // self.actor.dp)

    def ask(self, request: Request) -> None:
        """Hand a request to this rank's copy. Comm: point to point, from one process."""
        rank, self._requests = self.mesh.dp.rank, self._requests + 1
        if dist.get_rank() != self.actor.ranks(rank)[0]:
            return
        self._store.set(f"{rank}.{self._requests}", "")
        for process in self.copy_of(rank):
            dist.send_object_list([request], process, self.group)

    def requests(self) -> list[Request]:
        """The next request of each rank that this copy serves. Comm: point to point."""
        self._requests += 1
        found: list[Any] = []
        for rank in self._served():
            while not self._store.check([f"{rank}.{self._requests}"]):
                time.sleep(PAUSE_S)
            box: list[Any] = [None]
            dist.recv_object_list(box, self.actor.ranks(rank)[0], self.group)
            found += box
        return found

    def answer(self, answers: list[Any]) -> None:
        """Send each rank's answer to all its processes. Comm: point to point, from one process."""
        if dist.get_rank() != self.frozen.ranks(self.mesh.dp.rank)[0]:
            return
        for rank, answer in zip(self._served(), answers, strict=True):
            for process in self.actor.ranks(rank):
                dist.send_object_list([answer], process, self.group)

    def take(self) -> Any:
        """The answer to this rank's last request. Comm: point to point."""
        box: list[Any] = [None]
        dist.recv_object_list(box, self.copy_of(self.mesh.dp.rank)[0], self.group)
        return box[0]

    def _served(self) -> range:
        each = self.actor.dp // self.frozen.dp
        return range(self.mesh.dp.rank * each, (self.mesh.dp.rank + 1) * each)


class RemoteModels:
    """The frozen models as the actor's processes see them.

    Attributes:
        asked_to_stop: a process of theirs got a signal.
    """

    def __init__(self, bridge: Bridge, heart: Heartbeat) -> None:
        """Hold the way to them; ``heart`` knows the step."""
        self._bridge, self._heart, self.asked_to_stop = bridge, heart, False

    def __call__(self, responses: Responses, micro_batch_size: int) -> Pending:
        """Hand answers over; they are judged while this process goes on."""
        self._bridge.ask(Request(self._heart.step, responses.to("cpu"), micro_batch_size))
        return self._take

    def _take(self) -> tuple[Tensor, Tensor]:
        reference, scores, asked = self._bridge.take()
        self.asked_to_stop |= asked
        device = self._bridge.mesh.device
        return reference.to(device), scores.to(device)

    def end(self, stopped: str = "") -> None:
        """Let their processes end."""
        self._bridge.ask(Request(self._heart.step, stopped=stopped))


@contextmanager
def remote_models(bridge: Bridge, heart: Heartbeat) -> Iterator[RemoteModels]:
    """The frozen models on their own processes, which end with the block."""
    models = RemoteModels(bridge, heart)
    try:
        yield models
    except Stopped as stopped:
        models.end(str(stopped))
        raise
    models.end()


def serve(models: FrozenModels, bridge: Bridge, heart: Heartbeat) -> None:
    """Judge answers until the run ends.

    Raises:
        Stopped: it ended because it was asked to.
    """
    stop = StopSignal(bridge.mesh)
    while True:
        heart.enter(WAIT)
        requests = bridge.requests()
        heart.step = requests[0].step
        if requests[0].responses is None:
            stop.ignore()
            heart.enter("end")
            if requests[0].stopped:
                raise Stopped(requests[0].stopped)
            return
        heart.enter("rollout")
        bridge.answer(
            [_judged(models, r, bridge.mesh.device) + (stop.received > 0,) for r in requests]
        )


@torch.no_grad()
def _judged(models: FrozenModels, request: Request, device: torch.device) -> tuple[Any, ...]:
    responses = request.responses.to(device)
    return tuple(tensor.cpu() for tensor in models.judge(responses, request.micro_batch_size))
