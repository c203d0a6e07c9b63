"""What passes between the processes of PPO's actor and those of its frozen models.

Each data-parallel rank of the actor is served by one copy of the frozen models:

    actor's rank           announces and sends its answers            -> every process of the copy
    first process of copy  sends log-probabilities and scores back    -> every process of that rank

A copy takes the answers of all its ranks before it judges, so no rank waits for one that waits for
it. Between two rollouts it looks into the store and is in no collective: an update may take longer
than a group's timeout.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from megalite.distributed.mesh import Mesh
from megalite.distributed.stop import StopRequest
from megalite.errors import Stopped
from megalite.stages.rlhf.placement import Side
from megalite.stages.rlhf.responses import Responses
from megalite.stages.rlhf.rollout import FrozenJudgement, LocalModels, TakeJudgement
from megalite.torch_private import default_store
from megalite.training.stop import Asked, StopSignal
from megalite.training.watchdog.heartbeat import WAIT, Heartbeat

PAUSE_S = 0.01


@dataclass(frozen=True)
class JudgeRequest:
    """Asks a copy of the frozen models to judge answers.

    Attributes:
        step: under way.
        responses: to judge.
        micro_batch_size: answers per forward pass.
    """

    step: int
    responses: Responses
    micro_batch_size: int


@dataclass(frozen=True)
class EndRequest:
    """Lets a copy of the frozen models end.

    Attributes:
        step: the last one.
        stopped: why the run ends before its last step, or empty.
    """

    step: int
    stopped: str = ""


@dataclass(frozen=True)
class Reply:
    """What a copy of the frozen models sends back.

    Attributes:
        judgement: of the answers.
        asked: what the process that sends it was asked.
    """

    judgement: FrozenJudgement
    asked: Asked


class Bridge:
    """Who asks whom, and the group and store to do it with.

    Attributes:
        actor: the processes of actor and critic.
        frozen: the processes of the frozen models.
        mesh: of the side that this process is on.
    """

    def __init__(self, actor: Side, frozen: Side, mesh: Mesh) -> None:
        """Make the group. Comm: every process of the run calls this."""
        self.actor, self.frozen, self.mesh = actor, frozen, mesh
        self._group = dist.new_group(timeout=mesh.timeout, backend="gloo", group_desc="frozen")
        self._store = dist.PrefixStore("frozen", default_store())
        self._requests = 0

    def copy_of(self, rank: int) -> list[int]:
        """The processes that serve a data-parallel rank of the actor."""
        return self.frozen.ranks(rank * self.frozen.dp // self.actor.dp)

    def ask(self, request: JudgeRequest | EndRequest) -> None:
        """Hand a request to this rank's copy. Comm: point to point, from one process."""
        rank, self._requests = self.mesh.dp.rank, self._requests + 1
        if dist.get_rank() != self.actor.ranks(rank)[0]:
            return
        self._store.set(f"{rank}.{self._requests}", "")
        for process in self.copy_of(rank):
            dist.send_object_list([request], process, self._group)

    def requests(self) -> list[JudgeRequest | EndRequest]:
        """The next request of each rank that this copy serves. Comm: point to point."""
        self._requests += 1
        found = []
        for rank in self._served():
            while not self._store.check([f"{rank}.{self._requests}"]):
                time.sleep(PAUSE_S)
            found.append(self._receive(self.actor.ranks(rank)[0]))
        return found

    def reply(self, replies: Sequence[Reply]) -> None:
        """Send each rank's reply to all its processes. Comm: point to point, from one process."""
        if dist.get_rank() != self.frozen.ranks(self.mesh.dp.rank)[0]:
            return
        for rank, reply in zip(self._served(), replies, strict=True):
            for process in self.actor.ranks(rank):
                dist.send_object_list([reply], process, self._group)

    def take(self) -> Reply:
        """The reply to this rank's last request. Comm: point to point."""
        return self._receive(self.copy_of(self.mesh.dp.rank)[0])

    def _receive(self, process: int) -> Any:
        received: list[Any] = [None]
        dist.recv_object_list(received, process, self._group)
        return received[0]

    def _served(self) -> range:
        each = self.actor.dp // self.frozen.dp
        return range(self.mesh.dp.rank * each, (self.mesh.dp.rank + 1) * each)


class RemoteModels:
    """The frozen models as the actor's processes see them."""

    def __init__(self, bridge: Bridge, heartbeat: Heartbeat) -> None:
        """Ask over ``bridge``; the heartbeat knows the step."""
        self._bridge, self._heartbeat = bridge, heartbeat
        self._asked = Asked()

    def ask(self, responses: Responses, micro_batch_size: int) -> TakeJudgement:
        """Hand answers over; they are judged while this process goes on."""
        step = self._heartbeat.step
        self._bridge.ask(JudgeRequest(step, responses.to("cpu"), micro_batch_size))
        return self._take

    def _take(self) -> FrozenJudgement:
        reply = self._bridge.take()
        self._asked |= reply.asked
        return reply.judgement.to(self._bridge.mesh.device)

    def asked(self) -> Asked:
        """See :class:`FrozenModels`."""
        found, self._asked = self._asked, Asked()
        return found

    def end(self, stopped: str = "") -> None:
        """Let their processes end."""
        self._bridge.ask(EndRequest(self._heartbeat.step, stopped))


@contextmanager
def remote_models(bridge: Bridge, heartbeat: Heartbeat) -> Iterator[RemoteModels]:
    """The frozen models on their own processes, which end with the block."""
    models = RemoteModels(bridge, heartbeat)
    try:
        yield models
    except Stopped as stopped:
        models.end(str(stopped))
        raise
    models.end()


def serve(models: LocalModels, bridge: Bridge, heartbeat: Heartbeat, request: StopRequest) -> None:
    """Judge answers until the run ends; ``request`` is what asks this process to stop.

    Raises:
        Stopped: it ended because it was asked to.
    """
    stop = StopSignal(bridge.mesh, request)
    request.begin()
    while True:
        heartbeat.enter(WAIT)
        requests = bridge.requests()
        heartbeat.step = requests[0].step
        ends = [request for request in requests if isinstance(request, EndRequest)]
        if ends:
            stop.ignore()
            heartbeat.enter("end")
            if ends[0].stopped:
                raise Stopped(ends[0].stopped)
            return
        heartbeat.enter("rollout")
        judged = [_judge(models, r, bridge.mesh) for r in requests if isinstance(r, JudgeRequest)]
        asked = Asked(stop=stop.received > 0, save=request.wants_save)
        request.wants_save = False
        bridge.reply([Reply(one, asked) for one in judged])


@torch.no_grad()
def _judge(models: LocalModels, request: JudgeRequest, mesh: Mesh) -> FrozenJudgement:
    responses = request.responses.to(mesh.device)
    return models.judge(responses, request.micro_batch_size).to("cpu")
