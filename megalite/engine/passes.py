"""Passes of a pipeline that answers prompts: several are under way, so all parts have work."""

from collections.abc import Callable
from functools import cache as kept
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megalite.distributed.broadcast import start_share_from_last
from megalite.distributed.mesh import Mesh
from megalite.distributed.sums import all_reduce_sum
from megalite.engine.bubble import BusyClock
from megalite.models.batch import Batch
from megalite.models.context import KeyValueCache
from megalite.models.outputs import LAST_ROW, Kept, Output

Sent = list[tuple[dist.Work | None, Tensor]]  # what is under way, and what it reads
# The result of the last process's parts, else None, and what was sent on.
RunParts = Callable[[Batch, Output, KeyValueCache, BusyClock], tuple[Any, Sent]]


class Passes:
    """Begins passes, each before the logits of those before it are there.

    A process waits for what its parts read, computes, sends on and is done with a pass; the last
    one's logits come to all while it computes another. The bubble is measured from the first pass
    to the last.
    """

    def __init__(self, run: RunParts, mesh: Mesh, form: Callable[[Batch], Tensor]) -> None:
        """Begin none yet.

        Args:
            run: this process's parts.
            mesh: the mesh.
            form: a meta tensor like the logits of the last rows, [B, 1, V].
        """
        self._run, self._mesh, self._form = run, mesh, form
        self._clock: BusyClock | None = None

    @torch.no_grad()
    def begin(
        self, batch: Batch, cache: KeyValueCache, output: Output = LAST_ROW
    ) -> Callable[[], Tensor]:
        """Begin a pass: the same ones in the same order on all processes.

        Comm: what :meth:`Pipeline.evaluate` does, but for shapes, which all know.

        Returns:
            What waits for the logits [B, 1, V], or for a pass of which only a cache keeps
            something; it may be called several times.
        """
        if self._clock is None:
            self._clock = BusyClock(self._mesh.device)
        clock = self._clock
        result, sent = self._run(batch, output, cache, clock)
        coming = None
        if not isinstance(output, Kept):
            coming = start_share_from_last(result, self._form(batch), self._mesh)

        @kept
        def take() -> Tensor:
            for work, _ in sent:
                if work is not None:
                    work.wait()
            logits = torch.empty(0) if coming is None else coming.wait()
            clock.end()
            return logits

        return take

    def bubble(self) -> float:
        """The share of the time in which a process computed nothing, a mean over pp.

        Comm: all-reduce of a number over pp. On a GPU the host waits for the passes.
        """
        pp, clock = self._mesh.pp, self._clock
        idle = torch.tensor(0.0 if clock is None else clock.idle_share(), device=self._mesh.device)
        return float(all_reduce_sum(idle, pp)) / pp.size
