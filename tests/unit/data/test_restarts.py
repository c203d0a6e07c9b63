"""Which samples a run has seen, exactly: over restarts, ranks, batch sizes, epochs and blends."""

from collections import Counter
from itertools import islice

import pytest

from megalite.data.corpus.blend import Blend
from megalite.data.loader import Loader, Share

SEED = 7


class Numbered(list):
    """A dataset whose sample is its own name, in every epoch."""

    def __getitem__(self, number: int) -> str:
        return super().__getitem__(number % len(self))


def blend() -> Blend:
    """Two datasets of 11 and 6 samples, three to one."""
    parts = [Numbered(f"{name}{i}" for i in range(size)) for name, size in (("a", 11), ("b", 6))]
    return Blend(parts, [3.0, 1.0])


def read(data, batch: int, ranks: int, consumed: int, steps: int) -> list[list[str]]:
    """What all ranks read together in each step, in the run's order."""
    seen: list[list[str]] = [[] for _ in range(steps)]
    for rank in range(ranks):
        share = Share(batch, 1, rank, ranks)
        loader = Loader(data, lambda items, _: items, share, seed=SEED, consumed_samples=consumed)
        iterator = iter(loader)
        for step, micro_batches in enumerate(islice(iterator, steps)):
            seen[step] += [item for part in micro_batches for item in part]
        iterator.close()
    return seen


@pytest.mark.parametrize("stop_after", [1, 3, 4, 5, 9])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (4, 2), (1, 4)])
def test_a_restart_neither_repeats_nor_skips_a_sample(stop_after: int, before: int, after: int):
    """Ten steps of four are more than two epochs of the 17 samples."""
    whole = read(blend(), 4, 1, 0, 10)
    first = read(blend(), 4, before, 0, stop_after)
    second = read(blend(), 4, after, 4 * stop_after, 10 - stop_after)
    assert [sorted(step) for step in first + second] == [sorted(step) for step in whole]


def test_a_larger_batch_goes_on_with_the_next_sample():
    whole = [name for step in read(blend(), 1, 1, 0, 40) for name in step]
    small = [name for step in read(blend(), 4, 2, 0, 4) for name in step]
    large = [name for step in read(blend(), 8, 2, 16, 3) for name in step]
    assert small + large == whole


def test_an_epoch_has_every_sample_of_the_blend_once():
    """The second epoch goes on where the first left each dataset."""
    data = blend()
    seen = [name for step in read(data, 1, 1, 0, 2 * len(data)) for name in step]
    epochs = seen[: len(data)], seen[len(data) :]
    for number, names in enumerate(epochs):
        first = number * len(data)
        assert Counter(names) == Counter(data[first + i] for i in range(len(data)))
    assert epochs[0] != epochs[1]
