"""Several datasets as one."""

from collections.abc import Sequence
from typing import Generic, TypeVar

from megalite.data import index
from megalite.data.corpus.changing_blend import ChangingBlend
from megalite.data.loader import Dataset

Sample = TypeVar("Sample")


class Blend(Generic[Sample]):
    """Several datasets, evenly interleaved in proportion to their weights."""

    def __init__(self, datasets: Sequence[Dataset[Sample]], weights: Sequence[float]) -> None:
        """Blend; an epoch has as many samples as the datasets together.

        A dataset goes on in the next epoch where it stopped in the last, so that one of small
        weight is read to its end, and one of large weight several times.

        Args:
            datasets: one or more.
            weights: a positive share for each; they need not add up to 1.
        """
        self._datasets, self._weights = list(datasets), list(weights)
        total = sum(len(dataset) for dataset in datasets)
        whole = sum(weights)
        self._counts = [max(1, round(w / whole * total)) for w in weights]
        self._index = index.Blend(self._counts)

    def changing(self, later: Sequence[tuple[int, Sequence[float]]]) -> ChangingBlend[Sample]:
        """The same datasets by these weights until the first place of ``later``, then by those.

        Args:
            later: places of the run's order, rising, and weights from there on.
        """
        return ChangingBlend(self._datasets, [(0, self._weights), *later])

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self))
        which, inside = self._index.at(place)
        return self._datasets[which][epoch * self._counts[which] + inside]
