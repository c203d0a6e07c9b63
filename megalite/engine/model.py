"""What the trainer and the stages know of a model: a share of it here, and calls that run it whole.

Two classes are such models: :class:`megalite.engine.whole.Whole`, which is not cut into pipeline
parts, and :class:`megalite.engine.pipeline.Pipeline`. What both hold is here.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from megalite.distributed.mesh import Mesh
from megalite.engine.data_parallel import DataParallel, gathered, reshard
from megalite.engine.lora import NO_LORA, LoRAConfig, owner_and_name, with_adapters
from megalite.layers.shards import local_part
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.context import KeyValueCache
from megalite.models.outputs import Output, Scale
from megalite.models.transformer import Transformer

Result = Tensor | tuple[Tensor, ...]  # what a model gives for a micro-batch
Item = tuple[Batch, Any]  # a micro-batch, and what the loss needs besides


def _identity(result: Tensor, _extra: Any) -> tuple[Tensor, dict[str, Tensor]]:
    return result, {}


@dataclass(frozen=True)
class Task:
    """What a step computes.

    Attributes:
        output: what the model gives, such as ``Loss(scale=1 / targets)``.
        loss: of the model's result and the item's extra: a scalar that adds up over micro-batches
            and ranks, and metrics that add up too.
        others: what the model gives instead for items whose extra is of a class.
    """

    output: Output
    loss: Callable[[Any, Any], tuple[Tensor, dict[str, Tensor]]] = _identity
    others: Mapping[type, Output] = field(default_factory=dict)

    def output_for(self, extra: Any) -> Output:
        """What the model gives for an item with this extra."""
        return self.others.get(type(extra), self.output)


class Model(Protocol):
    """This process's share of a model."""

    @property
    def config(self) -> ModelConfig:
        """Shape of the whole model."""

    @property
    def mesh(self) -> Mesh:
        """The processes that it is spread over."""

    @property
    def parts(self) -> Sequence[Transformer]:
        """Its parts that are here, in order; one, unless a pipeline is interleaved."""

    @property
    def lora(self) -> LoRAConfig:
        """Its adapters; of rank 0 it has none, and all parameters learn."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of this process by the whole model's names, each name once."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of this process; one that two of its parts hold comes twice."""

    def owned_names(self) -> set[str]:
        """Parameters that this process's place in the pipeline counts in global sums."""

    def copy_duplicates(self) -> None:
        """After a load: make the later copies of a name equal to its first."""

    def forward_backward(
        self,
        items: Sequence[Item],
        task: Task,
        *,
        dropout_seed: int | None = None,
        loss_scale: Scale = 1.0,
    ) -> dict[str, Tensor]:
        """Run a step's micro-batches and leave the gradients of the sum of their losses.

        Args:
            items: micro-batches of this data-parallel rank, the same on its tp and pp processes.
            task: output and loss.
            dropout_seed: of the step; None is no dropout.
            loss_scale: losses are multiplied by it for the backward pass (fp16).

        Returns:
            Sums over this rank's micro-batches of ``loss`` and the task's metrics, fp32 scalars,
            the same on all pp processes. A pipeline adds ``bubble`` and ``bubble_theory``, divided
            by the data-parallel ranks that they will be summed over.
        """

    def evaluate(
        self, batches: Sequence[Batch], output: Output, cache: KeyValueCache | None = None
    ) -> list[Any]:
        """What the model gives for each micro-batch, without dropout, the same on all pp processes.

        Args:
            batches: micro-batches.
            output: what to give: a tensor or a tuple of tensors a batch.
            cache: for decoding (one batch).
        """

    def reshard(self) -> None:
        """Make the parameters pieces again, which :meth:`evaluate` may have left whole."""

    def gathered(self) -> AbstractContextManager[None]:
        """Keep all parameters gathered inside a block: forward passes communicate nothing over dp.

        Comm: all-gather of the parameters over shard on entry.
        """

    def without_adapters(self) -> AbstractContextManager[None]:
        """Compute inside a block as the frozen weights alone do."""


class Parts:
    """The parts of a model that this process holds, and their parameters as one set of names.

    Attributes:
        under_way: the micro-batch whose pass was begun last, from 1, and how many there are; zeros
            outside of passes.
    """

    under_way = 0, 0

    def __init__(
        self,
        parts: Sequence[Transformer],
        mesh: Mesh,
        how: DataParallel,
        lora: LoRAConfig = NO_LORA,
    ) -> None:
        """Hold parts that are sharded already.

        Args:
            parts: in order.
            mesh: the mesh.
            how: they were sharded.
            lora: their adapters.
        """
        self.parts, self.mesh, self.how, self.lora = parts, mesh, how, lora
        self.config = parts[0].config

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See :class:`Model`."""
        for name, (first, *_) in self.copies().items():
            yield name, first

    def parameters(self) -> Iterator[nn.Parameter]:
        """See :class:`Model`."""
        for _, parameter in self._own():
            yield parameter

    def owned_names(self) -> set[str]:
        """See :class:`Model`."""
        return set(self.copies())

    def copies(self) -> dict[str, list[nn.Parameter]]:
        """The parameters of each name, in the order of the parts that hold it; none of guests."""
        copies: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self._own():
            copies[name].append(parameter)
        return copies

    def _own(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self.parts:
            for name, parameter in part.named_parameters():
                if not owner_and_name(name)[0]:
                    yield name, parameter

    @torch.no_grad()
    def copy_duplicates(self) -> None:
        """See :class:`Model`."""
        for first, *others in self.copies().values():
            for other in others:
                local_part(other).copy_(local_part(first))

    def reshard(self) -> None:
        """See :class:`Model`."""
        reshard(self.parts)

    def gathered(self) -> AbstractContextManager[None]:
        """See :class:`Model`."""
        return gathered(self.parts, self.how)

    def without_adapters(self) -> AbstractContextManager[None]:
        """See :class:`Model`."""
        return with_adapters(self.parts, ())


class LossSums:
    """Adds up the losses and metrics of a step's micro-batches, for their backward passes too."""

    def __init__(self, task: Task, loss_scale: Scale, device: torch.device) -> None:
        """Begin with nothing.

        Args:
            task: whose loss.
            loss_scale: losses are multiplied by it for the backward pass.
            device: of the sums.
        """
        self._task, self._loss_scale = task, loss_scale
        self.sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=device))

    def add(self, result: Result, extra: Any) -> Tensor:
        """Count a micro-batch; give its scaled loss."""
        loss, metrics = self._task.loss(result, extra)
        for name, value in {"loss": loss, **metrics}.items():
            self.sums[name] = self.sums[name] + value.detach().float()
        return loss * self._loss_scale
