"""The order of samples: computed, a permutation, the same for any number of processes."""

from hypothesis import given
from hypothesis import strategies as st

from megalite.data.loader import Loader, Share, passes_over, spread
from megalite.data.permutation import permute, sample_at


@given(st.integers(1, 700), st.integers(0, 2**63), st.integers(0, 5))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    assert sorted(permute(i, size, seed, epoch) for i in range(size)) == list(range(size))


def test_orders_differ_by_seed_and_epoch_and_mix_neighbours():
    orders = [
        [permute(i, 997, seed, epoch) for i in range(997)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for order in orders:
        near = sum(abs(a - b) <= 1 for a, b in zip(order, order[1:], strict=False))
        assert near < 12  # 2 in 997 by chance at each place


def test_a_place_in_an_order_of_any_size_is_computed_alone():
    size = 10**12 + 39
    places = [0, 1, 10**6, size - 1]
    found = [permute(place, size, 3, 0) for place in places]
    assert len(set(found)) == 4
    assert all(0 <= number < size for number in found)
    assert sample_at(size + 5, size, 3) == size + permute(5, size, 3, 1)


class Endless(list):
    """A dataset of which sample i of any epoch is the same."""

    def __getitem__(self, number: int):
        return super().__getitem__(number % len(self))


@given(
    st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.integers(1, 50)
)
def test_ranks_together_read_each_step_of_one_process(size, micro, factor, samples):
    batch = size * micro * factor
    data = Endless(range(samples))
    make = lambda items, ids: list(zip(items, ids, strict=True))  # noqa: E731
    alone = Loader(data, make, Share(batch, batch), seed=5)
    ranks = [Loader(data, make, Share(batch, micro, rank, size), seed=5) for rank in range(size)]
    for consumed in (0, batch, 7 * batch):
        (whole,) = alone.read(consumed)
        parts = [item for rank in ranks for part in rank.read(consumed) for item in part]
        assert parts == whole
        assert all(len(rank.read(consumed)) == factor for rank in ranks)


def test_a_loader_goes_on_where_another_stopped():
    data, make = Endless(range(30)), lambda items, _: items
    whole = iter(Loader(data, make, Share(4, 2), seed=1))
    steps = [next(whole) for _ in range(20)]
    again = iter(Loader(data, make, Share(4, 2), seed=1, consumed_samples=4 * 12))
    assert [next(again) for _ in range(8)] == steps[12:]
    whole.close()
    again.close()


@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9))
def test_ranks_read_each_sample_once_in_equally_many_passes(count, size, ranks):
    passes = [passes_over(count, size, rank, ranks) for rank in range(ranks)]
    assert len({len(own) for own in passes}) == 1
    assert all(len(part) <= size for own in passes for part in own)
    assert sorted(sum((part for own in passes for part in own), [])) == list(range(count))


@given(st.integers(1, 90), st.integers(1, 60))
def test_samples_that_are_spread_over_a_dataset_come_once(count, size):
    numbers = spread(count, size)
    assert len(set(numbers)) == len(numbers) == min(count, size)
    assert numbers == sorted(numbers)
    assert numbers[0] == 0
    assert numbers[-1] < size
