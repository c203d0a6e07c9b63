"""Micro-batches of each step for one data-parallel rank; the only state is a count of samples."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from megalite.data.permutation import sample_at
from megalite.data.ramp import Ramp
from megalite.data.skipping import Ranges, place_of
from megalite.errors import ConfigError

PREFETCHED_STEPS = 2
Sample = TypeVar("Sample")
Read = TypeVar("Read", covariant=True)  # the Sample of what is only read
MicroBatch = TypeVar("MicroBatch")


class Dataset(Protocol[Read]):
    """Samples by number; reading one is a pure function of its number.

    Numbers go on beyond an epoch: a sample comes again, perhaps with other draws.
    """

    def __len__(self) -> int:
        """Samples of an epoch."""
        ...

    def __getitem__(self, number: int, /) -> Read:
        """One sample."""
        ...


@runtime_checkable
class Placed(Protocol[Read]):
    """Samples by their place in a run's order, which is their own."""

    def at_place(self, place: int, seed: int) -> Read:
        """The sample at a place, a pure function of it and the seed of the order."""


@dataclass(frozen=True)
class Share:
    """Which samples of a step this process reads.

    Attributes:
        global_batch_size: samples per step.
        micro_batch_size: samples per forward pass.
        rank: this data-parallel rank.
        size: data-parallel ranks.
        ramp: samples per step while they grow to ``global_batch_size``; None: always as many.
    """

    global_batch_size: int
    micro_batch_size: int
    rank: int = 0
    size: int = 1
    ramp: Ramp | None = None

    def __post_init__(self) -> None:
        unit = self.micro_batch_size * self.size
        if self.global_batch_size % unit:
            low = self.global_batch_size // unit * unit
            fits = f"{low} or {low + unit}" if low else f"{unit}"
            raise ConfigError(
                f"--train.global_batch_size {self.global_batch_size}: must be a multiple of "
                f"micro_batch_size {self.micro_batch_size} x {self.size} data-parallel processes "
                f"= {unit}: use {fits}"
            )

    def samples(self, consumed: int) -> int:
        """Of the step after ``consumed`` samples, over all ranks."""
        return self.global_batch_size if self.ramp is None else self.ramp.at(consumed)

    def places(
        self, consumed: int, skipped: Ranges = (), begin: int | None = None
    ) -> list[list[int]]:
        """Places in an order of samples of each micro-batch of the step after ``consumed`` samples.

        Args:
            consumed: samples of the steps before.
            skipped: places that are left out.
            begin: number of the step's first sample; None: ``consumed``, as in the run's order.
        """
        own = self.samples(consumed) // self.size
        first = (consumed if begin is None else begin) + self.rank * own
        size = self.micro_batch_size
        return [
            [place_of(number, skipped) for number in range(at, at + size)]
            for at in range(first, first + own, size)
        ]


def passes_over(count: int, size: int, rank: int = 0, ranks: int = 1) -> list[list[int]]:
    """Which of ``count`` samples a rank reads in each forward pass; all ranks read each once.

    Args:
        count: samples, numbered from 0.
        size: most samples of a pass.
        rank: of the ranks that share them.
        ranks: how many.

    Returns:
        As many lists on every rank, since its passes communicate; those of a rank with fewer
        samples end shorter, or empty: there it runs something that weighs nothing.
    """
    own = range(rank, count, ranks)
    most = -(-count // ranks)
    return [list(own[at : at + size]) for at in range(0, most, size)]


def spread(count: int, size: int) -> list[int]:
    """Numbers of ``count`` samples, evenly over a dataset of ``size``; all where it has fewer."""
    count = min(count, size)
    return [i * size // count for i in range(count)]


class Loader(Generic[Sample, MicroBatch]):
    """Gives each step's micro-batches, made ahead by a thread.

    The samples of a step depend only on the seed, the number of samples before it and those that
    are skipped, so a restart, or another number of ranks, goes on where the last left off.
    """

    def __init__(
        self,
        dataset: Dataset[Sample] | Placed[Sample],
        make: Callable[[Sequence[Sample], Sequence[int]], MicroBatch],
        share: Share,
        *,
        seed: int,
        consumed_samples: int = 0,
        skipped: Ranges = (),
    ) -> None:
        """Start after ``consumed_samples``.

        Args:
            dataset: samples by number, each epoch of them permuted, or by place.
            make: makes a micro-batch from samples and their places in the run's order.
            share: which of them are this process's.
            seed: of the order.
            consumed_samples: samples of earlier steps.
            skipped: places in the run's order that are left out.
        """
        self._dataset, self._make, self._share, self._seed = dataset, make, share, seed
        self._first, self._skipped = consumed_samples, skipped

    def read(self, consumed_samples: int, begin: int | None = None) -> list[MicroBatch]:
        """The micro-batches of the step after ``consumed_samples``; see :meth:`Share.places`."""
        return [
            self._make([self._sample(place) for place in places], places)
            for places in self._share.places(consumed_samples, self._skipped, begin)
        ]

    def _sample(self, place: int) -> Sample:
        if isinstance(self._dataset, Placed):
            return self._dataset.at_place(place, self._seed)
        return self._dataset[sample_at(place, len(self._dataset), self._seed)]

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        """Yield the micro-batches of step after step, without end."""
        ready: queue.Queue[list[MicroBatch] | Exception] = queue.Queue(PREFETCHED_STEPS)
        stop = threading.Event()

        def work() -> None:
            consumed = self._first
            while not stop.is_set():
                item: list[MicroBatch] | Exception
                try:
                    item = self.read(consumed)
                except Exception as error:  # handed to the consumer, which raises it
                    item = error
                while not stop.is_set():
                    try:
                        ready.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                consumed += self._share.samples(consumed)

        thread = threading.Thread(target=work, name="loader", daemon=True)
        thread.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()  # a thread inside PyTorch when the process ends would abort it
