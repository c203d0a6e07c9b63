"""Held-out samples: a share by number, never learned, the same in every process and epoch."""

import numpy as np
import pytest

from megalite.data.records import Records
from megalite.data.split import PartOf, Split
from megalite.errors import DataError
from megalite.seeds import fold, splitmix64


class Numbers:
    """Each sample is its number, beyond an epoch too."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> int:
        return number


def test_a_choice_is_a_function_of_seed_and_number_as_defined():
    split = Split("heldout", 0.25, seed=7)
    key = fold(7, 0x5B117)
    for number in (0, 1, 2, 999, 2**40):
        assert split.has(number) == (splitmix64(number ^ key) < 2**62)
        assert Split("train", 0.25, seed=7).has(number) != split.has(number)
        assert Split().has(number)


@pytest.mark.parametrize(("size", "share"), [(57, 0.1), (1000, 0.5), (5003, 0.01)])
def test_the_parts_of_a_dataset_are_all_of_it_in_order_and_go_on_with_its_epochs(size, share):
    parts = [PartOf(Numbers(size), Split(p, share, 1), "store") for p in ("train", "heldout")]
    read = [[part[i] for i in range(len(part))] for part in parts]
    assert sorted(read[0] + read[1]) == list(range(size))
    assert all(numbers == sorted(numbers) for numbers in read)
    for part, numbers in zip(parts, read, strict=True):
        assert [part[len(part) + i] for i in range(len(part))] == [size + n for n in numbers]


def test_the_share_is_about_what_was_asked():
    for share in (0.01, 0.3, 0.9):
        held = Split("heldout", share, 1).held_out(np.arange(100_000)).mean()
        assert abs(held - share) < 0.01


def test_records_of_the_parts_are_those_of_all_files_and_none_twice(tmp_path):
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for number, path in enumerate(paths):
        path.write_text("".join(f'{{"x": {10 * number + i}}}\n' for i in range(10)))

    def read(part: str) -> list[int]:
        return [x for _, x in Records(paths, lambda r: r["x"], split=Split(part, 0.2, 3))]

    assert sorted(read("train") + read("heldout")) == read("all") == list(range(30))
    assert read("heldout") == [n for n in range(30) if Split("heldout", 0.2, 3).has(n)]


@pytest.mark.parametrize(
    ("split", "says"),
    [(Split("heldout", 1e-9), "is held out: raise it"), (Split("train", 1 - 1e-12), "is left to")],
)
def test_a_split_that_leaves_nothing_is_refused(tmp_path, split, says):
    path = tmp_path / "a.jsonl"
    path.write_text('{"x": 1}\n')
    for read in (
        lambda: list(Records([path], dict, split=split)),
        lambda: PartOf(Numbers(1), split, "store"),
    ):
        with pytest.raises(DataError, match=f"--data.split .*of the 1 samples of .*none {says}"):
            read()
