"""How a family's published files relate to our parameters: a table of names and shapes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from megalite.models.config import ModelConfig

Split = Callable[[Tensor, ModelConfig], list[Tensor]]
Join = Callable[[list[Tensor], ModelConfig], Tensor]


def _as_it_is(tensor: Tensor, _config: ModelConfig) -> list[Tensor]:
    return [tensor]


def _only(tensors: list[Tensor], _config: ModelConfig) -> Tensor:
    return tensors[0]


@dataclass(frozen=True)
class Entry:
    """One tensor of theirs and what it is of ours.

    Attributes:
        theirs: its name; ``{i}`` is the layer's number.
        ours: our parameters' names; the split pieces go to them in order, each reshaped.
        split: their tensor to ours.
        join: ours, each reshaped to two dimensions where it had more (one for a bias), to theirs.
    """

    theirs: str
    ours: tuple[str, ...]
    split: Split = _as_it_is
    join: Join = _only


def same(theirs: str, ours: str) -> Entry:
    """An entry whose tensors differ in shape only."""
    return Entry(theirs, (ours,))


def transposed(theirs: str, ours: str) -> Entry:
    """An entry whose matrix is stored the other way round (GPT-2's Conv1D)."""
    return Entry(theirs, (ours,), lambda t, _: [t.t()], lambda ts, _: ts[0].t())


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Attributes:
        name: the ``model_type`` of its Hugging Face config.
        architecture: the class that loads it in transformers.
        from_theirs: their config to ours.
        to_theirs: our config to theirs.
        once: entries outside the layers.
        layer: entries of each decoder layer.
        encoder_layer: entries of each encoder layer.
        is_ours: whether a config of ours is of this family.
        ignored: endings of tensors of theirs that are no parameters.
    """

    name: str
    architecture: str
    from_theirs: Callable[[dict[str, Any]], ModelConfig]
    to_theirs: Callable[[ModelConfig], dict[str, Any]]
    once: Callable[[ModelConfig], list[Entry]]
    layer: Callable[[ModelConfig], list[Entry]]
    is_ours: Callable[[ModelConfig], bool]
    encoder_layer: Callable[[ModelConfig], list[Entry]] = lambda _: []
    ignored: tuple[str, ...] = ()

    def entries(self, config: ModelConfig) -> Iterator[Entry]:
        """Every entry of a model, layers numbered."""
        yield from self.once(config)
        for entries, count in (
            (self.encoder_layer(config), config.num_encoder_layers),
            (self.layer(config), config.num_layers),
        ):
            for i in range(count):
                for entry in entries:
                    theirs = entry.theirs.replace("{i}", str(i))
                    ours = tuple(name.replace("{i}", str(i)) for name in entry.ours)
                    yield Entry(theirs, ours, entry.split, entry.join)
