"""Samples that are held out: a share of them, chosen by a function of the seed and their number."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from megalite.data.arrays import Int64
from megalite.data.loader import Dataset
from megalite.errors import DataError
from megalite.seeds import fold

Sample = TypeVar("Sample")
Part = Literal["all", "train", "heldout"]
SITE = 0x5B117  # of these draws among those of a seed
CHUNK = 1 << 22


@dataclass(frozen=True)
class Split:
    """Which samples a run reads.

    Attributes:
        part: all, or those that are learned, or those that are held out.
        share: of the samples that are held out.
        seed: of the choice.
    """

    part: Part = "all"
    share: float = 0.0
    seed: int = 0

    def has(self, number: int) -> bool:
        """Whether a sample is in the part."""
        if self.part == "all":
            return True
        is_held = bool(self.held_out(np.array([number]))[0])
        return is_held == (self.part == "heldout")

    def held_out(self, numbers: Int64) -> NDArray[np.bool_]:
        """Which samples are held out, [n] for ``numbers`` [n]."""
        with np.errstate(over="ignore"):
            mixed = _mixed(numbers.astype(np.uint64) ^ np.uint64(fold(self.seed, SITE)))
        return mixed < np.uint64(min(int(self.share * 2**64), 2**64 - 1))


def _mixed(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of each; see :func:`megalite.seeds.splitmix64`."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


class PartOf(Generic[Sample]):
    """A part of a dataset; in memory are the numbers of what is held out alone."""

    def __init__(self, dataset: Dataset[Sample], split: Split, name: str) -> None:
        """Choose the samples.

        Raises:
            DataError: none is left; ``name`` is of the dataset.
        """
        self._dataset, self._part = dataset, split.part
        size = len(dataset)
        starts = range(0, size, CHUNK)
        parts = [np.arange(at, min(at + CHUNK, size), dtype=np.int64) for at in starts]
        self._held = np.concatenate([part[split.held_out(part)] for part in parts])
        self._before = self._held - np.arange(len(self._held))
        if not len(self):
            raise nothing_left(split, name, size)

    def __len__(self) -> int:
        count = len(self._held)
        return count if self._part == "heldout" else len(self._dataset) - count

    def __getitem__(self, number: int) -> Sample:
        epoch, place = divmod(number, len(self))
        if self._part == "heldout":
            chosen = int(self._held[place])
        else:
            chosen = place + int(np.searchsorted(self._before, place, side="right"))
        return self._dataset[epoch * len(self._dataset) + chosen]


def nothing_left(split: Split, name: str, size: int) -> DataError:
    """What to say where a part has no sample."""
    what = "held out" if split.part == "heldout" else "left to learn"
    do = "raise it" if split.part == "heldout" else "lower it"
    return DataError(
        f"--data.split {split.share:g}: of the {size:,} samples of {name} none is {what}: {do}, or "
        "give data.heldout"
    )
