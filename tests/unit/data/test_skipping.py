"""Samples that a run skips: the order of the others, in any layout."""

import random

import pytest

from megalite.data.loader import Loader, Share
from megalite.data.skipping import is_same_before, learned_to, merged, place_of

SKIPPED = ((0, 2), (5, 9), (20, 21))


def test_ranges_are_put_in_order_and_joined():
    assert merged([(5, 7), (1, 2), [7, 9], (6, 8), (3, 3), (2, 3)]) == ((1, 3), (5, 9))
    assert merged(()) == ()


@pytest.mark.parametrize("seed", range(5))
def test_learned_samples_are_those_that_no_range_has(seed: int):
    generator = random.Random(seed)
    pairs = [(first, first + generator.randint(0, 9)) for first in generator.sample(range(90), 6)]
    ranges = merged(pairs)
    left = [place for place in range(200) if not any(f <= place < end for f, end in pairs)]
    assert [place_of(number, ranges) for number in range(100)] == left[:100]
    for count in (0, 1, 7, 50):
        assert learned_to(count, ranges) == (left[count - 1] + 1 if count else 0)


@pytest.mark.parametrize(("micro", "size"), [(1, 1), (2, 1), (1, 3), (2, 2)])
def test_all_ranks_together_read_the_order_without_the_skipped_samples(micro: int, size: int):
    left = [place for place in range(100) if not any(f <= place < end for f, end in SKIPPED)]
    loaders = [
        Loader(
            range(1000),
            lambda _samples, places: list(places),
            Share(12, micro, rank, size),
            seed=0,
            skipped=SKIPPED,
        )
        for rank in range(size)
    ]
    for consumed in (0, 12, 24):
        read = [place for loader in loaders for part in loader.read(consumed) for place in part]
        assert read == left[consumed : consumed + 12]


def test_orders_are_compared_as_far_as_they_were_learned():
    assert is_same_before(5, ((0, 2),), SKIPPED)
    assert not is_same_before(6, ((0, 2),), SKIPPED)
    assert is_same_before(0, (), SKIPPED)
