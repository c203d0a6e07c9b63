"""An adapted model as it started, without a second copy of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from megalite.distributed.mesh import Mesh
from megalite.engine.lora import ADAPTER
from megalite.engine.model import Model
from megalite.layers.shards import local_part
from megalite.models.batch import Batch
from megalite.models.outputs import Output


class Judging(Protocol):
    """What is asked about batches and doesn't learn: a model, or one as it started."""

    @property
    def mesh(self) -> Mesh:
        """The processes that it is spread over."""

    def evaluate(self, batches: Sequence[Batch], output: Output) -> list[Any]:
        """See :class:`megalite.engine.model.Model`."""

    def reshard(self) -> None:
        """Let go of parameters that only :meth:`evaluate` gathers."""


class Base:
    """A model whose adapters are off while it is asked, and whose scalar head is as it was."""

    def __init__(self, model: Model) -> None:
        """Keep what learns of a model as a whole, its scalar head; before it has learned."""
        assert model.lora.rank
        self.mesh, self._model = model.mesh, model
        self._others = {n: local_part(p).detach().clone() for n, p in self._whole()}

    def _whole(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad and ADAPTER not in name:
                yield name, parameter

    def evaluate(self, batches: Sequence[Batch], output: Output) -> list[Any]:
        """What the model as it started gives for each micro-batch."""
        with self._as_it_started(), self._model.without_adapters():
            return self._model.evaluate(batches, output)

    def reshard(self) -> None:
        """Nothing: the parameters are the model's, which goes on with them."""

    @contextmanager
    def _as_it_started(self) -> Iterator[None]:
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        """Put what is kept in place of what learns, and keep that."""
        if self._model.config.head != "value":
            return
        self._model.reshard()
        for name, parameter in self._whole():
            local, kept = local_part(parameter), self._others[name]
            now = local.clone()
            local.copy_(kept)
            kept.copy_(now)
