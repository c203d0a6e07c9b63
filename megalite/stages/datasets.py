"""The samples of a run: those it learns from, and those that are held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from megalite.data.config import ConversationConfig

Samples = TypeVar("Samples")


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
