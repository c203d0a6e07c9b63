"""Several datasets as one, whose shares change at places of a run's order.

Each dataset is read in an order of its own and goes on in it from phase to phase: a later phase
reads what those before have left, and begins anew when all has come. What stands at a place is a
function of the place and the seed.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from megalite.data import index
from megalite.data.loader import Dataset
from megalite.data.permutation import sample_at
from megalite.seeds import fold

Sample = TypeVar("Sample")
ORDER, MIX = 0xB1E4D, 0xB1E4E  # of a dataset's own order, and of a phase's, for a seed


@dataclass(frozen=True)
class Phase:
    """Places of the run's order with the same shares.

    Attributes:
        first: its first place.
        counts: samples of each dataset in it, or in each of its epochs where it is the last.
        before: samples of each dataset in the phases before.
    """

    first: int
    counts: tuple[int, ...]
    before: tuple[int, ...]

    @property
    def size(self) -> int:
        """Samples of the phase, or of an epoch of the last."""
        return sum(self.counts)


def apportioned(size: int, weights: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers in proportion to weights that add up to ``size``: largest remainders get one.

    Source: Hamilton's method.
    """
    whole = sum(weights)
    exact = [size * weight / whole for weight in weights]
    counts = [int(share) for share in exact]
    by_rest = sorted(range(len(exact)), key=lambda n: (counts[n] - exact[n], n))
    for number in by_rest[: size - sum(counts)]:
        counts[number] += 1
    return tuple(counts)


class ChangingBlend(Generic[Sample]):
    """Datasets blended by weights that change; see :class:`megalite.data.loader.Placed`."""

    def __init__(
        self,
        datasets: Sequence[Dataset[Sample]],
        weights: Sequence[tuple[int, Sequence[float]]],
    ) -> None:
        """Blend; the last weights hold for ever, in epochs of as many samples as there are.

        Args:
            datasets: one or more.
            weights: first place of each phase, from 0 on and rising, and a share for each dataset;
                0: none of it, but some share is more.
        """
        self._datasets = list(datasets)
        total = sum(len(dataset) for dataset in datasets)
        firsts = [first for first, _ in weights]
        sizes = [end - first for first, end in zip(firsts, firsts[1:], strict=False)] + [total]
        before = (0,) * len(self._datasets)
        self._phases: list[Phase] = []
        for (first, shares), size in zip(weights, sizes, strict=True):
            counts = apportioned(size, shares)
            self._phases.append(Phase(first, counts, before))
            before = tuple(a + b for a, b in zip(before, counts, strict=True))
        self._firsts = firsts
        self._blends = [index.Blend([n for n in p.counts if n]) for p in self._phases]
        self._used = [[d for d, n in enumerate(p.counts) if n] for p in self._phases]

    def at_place(self, place: int, seed: int) -> Sample:
        """The sample at a place of the run's order."""
        dataset, drawn = self.drawn_at(place, seed)
        own = self._datasets[dataset]
        return own[sample_at(drawn, len(own), fold(seed, ORDER, dataset))]

    def drawn_at(self, place: int, seed: int) -> tuple[int, int]:
        """Which dataset a place is of, and how many of its samples come before it at most."""
        number = bisect_right(self._firsts, place) - 1
        phase = self._phases[number]
        inside = sample_at(place - phase.first, phase.size, fold(seed, MIX, number))
        epoch, at = divmod(inside, phase.size)
        blended, own = self._blends[number].at(at)
        dataset = self._used[number][blended]
        return dataset, phase.before[dataset] + epoch * phase.counts[dataset] + own
