"""Datasets whose shares of a run change: exact shares, nothing twice too early, by place alone."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.config.amount import Measure
from megalite.data.config import CorpusConfig
from megalite.data.corpus.blend import Blend
from megalite.data.corpus.changing_blend import ChangingBlend, apportioned
from megalite.data.loader import Loader, Share
from megalite.errors import ConfigError
from megalite.stages.corpus import learned, settled_weights

SIZES = (40, 25, 7)
WEIGHTS = [(0, (4.0, 1.0, 1.0)), (60, (1.0, 0.0, 1.0)), (90, (0.0, 1.0, 0.0))]


class Numbers:
    """Samples that say whose they are."""

    def __init__(self, name: int, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> tuple[int, int]:
        return self.name, number


DATASETS = [Numbers(name, size) for name, size in enumerate(SIZES)]


def read(places: range, seed: int = 3) -> list[tuple[int, int]]:
    blend = ChangingBlend(DATASETS, WEIGHTS)
    return [blend.at_place(place, seed) for place in places]


def test_each_phase_has_its_shares():
    counts = [Counter(name for name, _ in read(places)) for places in (range(60), range(60, 90))]
    assert counts == [{0: 40, 1: 10, 2: 10}, {0: 15, 2: 15}]
    assert {name for name, _ in read(range(90, 400))} == {1}
    assert read(range(60)) != read(range(60), seed=4)


@given(st.integers(0, 3))
def test_phases_go_on_in_each_dataset_and_begin_it_anew_when_all_has_come(seed: int):
    """Over phases and into the epochs of the last."""
    samples = read(range(90 + 2 * sum(SIZES)), seed)
    for name, size in enumerate(SIZES):
        own = [number for whose, number in samples if whose == name]
        epochs = [number // size for number in own]
        assert len(set(own)) == len(own)
        for epoch in range(max(epochs)):
            assert sorted(n for n in own if n // size == epoch) == list(
                range(epoch * size, (epoch + 1) * size)
            )


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 9), min_size=1, max_size=5))
def test_shares_add_up_and_are_near_what_they_should_be(size: int, weights: list[float]):
    counts = apportioned(size, weights)
    assert sum(counts) == size
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - size * weight / sum(weights)) < 1


def test_a_loader_reads_the_same_places_in_steps_of_any_size():
    blend = ChangingBlend(DATASETS, WEIGHTS)
    make = lambda samples, _places: list(samples)  # noqa: E731
    small, large = (Loader(blend, make, Share(n, 1), seed=3) for n in (4, 20))
    parts = [small.read(at) for at in range(40, 80, 4)]
    whole = [large.read(at) for at in (40, 60)]
    assert sum(sum(parts, []), []) == sum(sum(whole, []), []) == read(range(40, 80))


def config(**more) -> CorpusConfig:
    return CorpusConfig(**more)


def test_places_are_settled_and_without_any_the_blend_is_as_it_was():
    measure = Measure(after_steps=lambda steps: 8 * steps, tokens=100)
    told = {"1K tokens": (1.0, 2.0, 3.0), "50%": (0.0, 1.0, 0.0)}
    found = settled_weights(config(weights_at=told), measure, 200)
    assert list(found.weights_at) == ["10 samples", "100 samples"]
    blend = Blend(DATASETS, (4.0, 1.0, 1.0))
    changing = learned(blend, found)
    assert [changing.at_place(p, 3)[0] for p in range(100, 120)] == [1] * 20
    assert learned(blend, config()) is blend


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"soon": (1.0,)}, "'soon': must be a share"),
        ({"0.5": (0.0, 0.0)}, r"'0.5' \[0.0, 0.0\]: must be a weight for each store"),
        ({"0.5": (2.0, -1.0)}, "none negative and some positive"),
        ({"0.5": ()}, "must be a weight for each store"),
    ],
)
def test_weights_that_are_none_are_refused(told, says):
    with pytest.raises(ConfigError, match=f"--data.weights_at.*{says}"):
        config(weights_at=told)


def test_places_out_of_order_and_two_kinds_of_weights_are_refused():
    measure = Measure(after_steps=int)
    for told in ({"0 samples": (1.0,)}, {"0.5": (1.0,), "4 samples": (2.0,)}):
        with pytest.raises(ConfigError, match="--data.weights_at .* give them in order"):
            settled_weights(config(weights_at=told), measure, 100)
    with pytest.raises(ConfigError, match="--data.size_limit 9: is for weights by size"):
        config(weights=(1.0,), size_limit=9)
