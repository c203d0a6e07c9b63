"""Models on the frozen weights of another, their host: adapters and a scalar head of their own.

A host's layers hold the adapters of its guests beside its own, and its last part their heads, so
tp, FSDP2 and pipelines treat them as they do the host's, and a base is in memory once. Who computes
turns its adapters on, and all others off. A guest's parameters have the names that they would have
in a model with weights of its own: initial values go by them, and checkpoints don't tell.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megalite.engine.lora import ADAPTER, LoRAConfig, owner_and_name, with_adapters
from megalite.engine.model import Item, Model, Task
from megalite.layers.adapter import AdapterOptions
from megalite.layers.linear import AdaptableLinear
from megalite.models.batch import Batch
from megalite.models.config import ModelConfig
from megalite.models.context import KeyValueCache
from megalite.models.head import Head
from megalite.models.outputs import Output, Scale
from megalite.models.transformer import Transformer


@dataclass(frozen=True)
class GuestOptions:
    """What a guest has of its own.

    Attributes:
        name: by which its host tells it from others.
        shape: of the whole model, whose head is the scalar one; else as the host's.
        lora: its adapters.
        learns: whether they and its head do.
    """

    name: str
    shape: ModelConfig
    lora: LoRAConfig
    learns: bool = True


def add_guests(part: Transformer, guests: Sequence[GuestOptions], held: torch.dtype) -> None:
    """Give a part of a model what its guests have there, once it is adapted and before it is cut.

    Args:
        part: of the host, without storage.
        guests: in the order of their products' sum.
        held: dtype of what doesn't learn, that of compute.
    """
    for guest in guests:
        options = AdapterOptions(guest.lora.rank, guest.lora.scale, dora=guest.lora.dora)
        with torch.device("meta"):
            for name, module in list(part.named_modules()):
                if isinstance(module, AdaptableLinear) and guest.lora.chooses(name):
                    module.adapt(name, options, guest.name)
            if part.head is not None:
                part.guests = part.guests if part.guests is not None else nn.ModuleDict()
                part.guests[guest.name] = Head(guest.shape, part.mesh)
        if not guest.learns:
            _freeze(part, guest.name, held)


def _freeze(part: Transformer, guest: str, held: torch.dtype) -> None:
    for prefix, module in part.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if owner_and_name(f"{prefix}.{name}")[0] == guest:
                frozen = nn.Parameter(parameter.detach().to(held), requires_grad=False)
                module.register_parameter(name, frozen)


class Guest:
    """A model on another's frozen weights; see :class:`megalite.engine.model.Model`."""

    def __init__(self, host: Model, options: GuestOptions, beside: Sequence[str] = ()) -> None:
        """Take what the host was built with.

        Args:
            host: a model with this guest.
            options: those that it was built with.
            beside: other guests, whose adapters are on in its passes too.
        """
        self.host, self.options = host, options
        self.config, self.lora = options.shape, options.lora
        self.mesh, self.parts = host.mesh, host.parts
        self._chosen: Sequence[str] = (options.name, *beside)

    @property
    def under_way(self) -> tuple[int, int]:
        """The micro-batch whose pass was begun last, and how many there are."""
        under_way: tuple[int, int] = getattr(self.host, "under_way", (0, 0))
        return under_way

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See :class:`Model`; the host's frozen weights but its head are among them."""
        yield from self._own()
        for name, parameter in self.host.named_parameters():
            if self._is_of_base(name):
                yield name, parameter

    def _own(self) -> Iterator[tuple[str, nn.Parameter]]:
        for part in self.parts:
            for name, parameter in part.named_parameters():
                owner, own = owner_and_name(name)
                if owner == self.options.name:
                    yield own, parameter

    def _is_of_base(self, name: str) -> bool:
        return not (ADAPTER in name or name.startswith("head."))

    def parameters(self) -> Iterator[nn.Parameter]:
        """See :class:`Model`."""
        for _, parameter in self.named_parameters():
            yield parameter

    def owned_names(self) -> set[str]:
        """See :class:`Model`."""
        base = {name for name in self.host.owned_names() if self._is_of_base(name)}
        return base | {name for name, _ in self._own()}

    def copy_duplicates(self) -> None:
        """Nothing: no two parts have the same adapter, and the host's weights stay."""

    def forward_backward(
        self,
        items: Sequence[Item],
        task: Task,
        *,
        dropout_seed: int | None = None,
        loss_scale: Scale = 1.0,
    ) -> dict[str, Tensor]:
        """See :class:`Model`."""
        with self._computing():
            return self.host.forward_backward(
                items, task, dropout_seed=dropout_seed, loss_scale=loss_scale
            )

    def evaluate(
        self, batches: Sequence[Batch], output: Output, cache: KeyValueCache | None = None
    ) -> list[Any]:
        """See :class:`Model`."""
        with self._computing():
            return self.host.evaluate(batches, output, cache)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Let the host's parts compute what this model gives."""
        with with_adapters(self.parts, self._chosen):
            for part in self.parts:
                part.asked = self.options.name
            try:
                yield
            finally:
                for part in self.parts:
                    part.asked = ""

    def reshard(self) -> None:
        """See :class:`Model`; one that doesn't learn leaves it to its host, which goes on."""
        if self.options.learns:
            self.host.reshard()

    def gathered(self) -> AbstractContextManager[None]:
        """See :class:`Model`."""
        return self.host.gathered()

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """See :class:`Model`; its head stays."""
        chosen, self._chosen = self._chosen, ()
        try:
            yield
        finally:
            self._chosen = chosen
