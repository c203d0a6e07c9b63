"""The comparison of all processes' own time, every so many steps."""

import socket

import torch

from megalite.distributed.collectives import gather_stacked
from megalite.distributed.gather import gather_objects
from megalite.distributed.mesh import Mesh
from megalite.distributed.transfer import Staged, moved
from megalite.models.config import ModelConfig
from megalite.training.learner import Learner
from megalite.training.metrics.gpu_health import GpuHealth
from megalite.training.stragglers import Own, SlowInARow, figures, find_slow

Found = tuple[dict[str, float], list[str]]


class PaceWatch:
    """Sends this process's pace to the others; the first process judges all of them."""

    def __init__(self, learner: Learner) -> None:
        """Watch over the processes that train a model; its heartbeat has this process's times."""
        mesh, train = learner.mesh, learner.learning.train
        config, stopwatch = train.stragglers, learner.heartbeat.stopwatch
        self._every = config.every if mesh.world.size > 1 else 0
        self._share, self._mesh, self._stopwatch = config.share, mesh, stopwatch
        self._health = GpuHealth(mesh.device, train.precision) if self._every else None
        self._slow = SlowInARow(config.steps)
        self._work = _work_of(mesh, learner.model.config)
        self._names: list[str] = []
        self._works: list[int] = []
        self._sent: Staged | None = None
        stopwatch.keep(self._every or 1)

    def look(self, step: int, is_writer: bool) -> Found:
        """Compare the last steps, if that is due.

        Comm: every ``every`` steps an all-gather of 17 numbers over the world; on a GPU it is read
        a step later, when it has arrived.

        Args:
            step: that is done.
            is_writer: whether this process judges.

        Returns:
            Metrics, and what there is to say; empty where nothing was compared.
        """
        found = self._judged() if is_writer and self._sent is not None else ({}, [])
        self._sent = None
        if self._every and step % self._every == 0:
            self._send()
            if self._mesh.device.type == "cpu" and is_writer:
                found, self._sent = self._judged(), None
        return found

    def _send(self) -> None:
        """Begin to send this process's numbers. Comm: names too, the first time."""
        mesh = self._mesh
        if not self._names:
            rank = (mesh.ranks() or [0])[mesh.world.rank]
            own = f"rank {rank} ({socket.gethostname()})", self._work
            told = gather_objects(own, mesh.world)
            self._names, self._works = [name for name, _ in told], [work for _, work in told]
        assert self._health is not None
        numbers = Own(self._stopwatch.pace(), self._health.look()).numbers()
        values = moved(torch.tensor(numbers, dtype=torch.float64), mesh.device)
        self._sent = Staged({"all": gather_stacked(values, mesh.world)})

    def _judged(self) -> Found:
        assert self._sent is not None
        rows = self._sent.wait()["all"].t().tolist()
        all_own = [Own.of(row) for row in rows]
        slow = find_slow(all_own, self._works, self._share)
        said = self._slow.see(self._every, slow, self._names)
        named = self._slow.named
        return figures(all_own) | ({"stragglers": float(len(named))} if named else {}), said


def _work_of(mesh: Mesh, model: ModelConfig) -> int:
    """A number that processes have in common which do the same work for samples of one size.

    A GPU's host computes nothing; it spins where the GPU is behind.
    """
    if mesh.device.type == "cuda":
        return mesh.world.rank
    sizes = model.num_heads, model.kv_heads, model.ffn_size, model.vocab_size
    is_even = all(size % mesh.tp.size == 0 for size in sizes)
    return mesh.pp.rank * mesh.tp.size + (0 if is_even else mesh.tp.rank)
