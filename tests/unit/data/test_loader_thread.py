import threading

import pytest

from megalite.data.loader import Loader, Share


def loader_threads() -> int:
    return sum(thread.name == "loader" for thread in threading.enumerate())


def test_the_reading_thread_ends_with_the_iteration():
    loader = Loader(list(range(64)), lambda items, _: items, Share(8, 2, 0, 1), seed=0)
    before = loader_threads()
    steps = iter(loader)
    next(steps)
    assert loader_threads() == before + 1
    steps.close()
    assert loader_threads() == before


def test_an_error_of_the_reading_thread_is_raised_where_steps_are_taken():
    def broken(items, _):
        raise ValueError("row 3")

    steps = iter(Loader(list(range(64)), broken, Share(8, 2, 0, 1), seed=0))
    with pytest.raises(ValueError, match="row 3"):
        next(steps)
