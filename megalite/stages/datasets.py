"""The samples of a run: those it learns from, and those that are held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from megalite.data.config import ConversationConfig


class Noted(Protocol):
    """A dataset that knows what of its files is not read or was left out."""

    notes: list[str]


Samples = TypeVar("Samples")
NotedSamples = TypeVar("NotedSamples", bound=Noted)


@dataclass(frozen=True)
class Datasets(Generic[Samples]):
    """Datasets of one kind.

    Attributes:
        train: what the run learns from.
        heldout: what it is evaluated on, or None.
    """

    train: Samples
    heldout: Samples | None

    @classmethod
    def read(
        cls, data: ConversationConfig, read: Callable[[Sequence[str]], Samples]
    ) -> "Datasets[Samples]":
        """Read the files that ``data`` names, each group of them with ``read``."""
        return cls(read(data.train), read(data.heldout) if data.heldout else None)


def notes_of(datasets: Datasets[NotedSamples]) -> list[str]:
    """What of a run's files is not read or was left out."""
    heldout = datasets.heldout
    return [*datasets.train.notes, *([] if heldout is None else heldout.notes)]
