"""The first fault that is found is the one that is told, once."""

import pytest
from torch.distributed import TCPStore

from megalite.training.watchdog.store import FirstFault


@pytest.fixture(scope="module")
def store() -> TCPStore:
    return TCPStore("localhost", 0, is_master=True)


def test_one_of_two_that_find_the_same_fault_in_the_same_words_is_first(store):
    seen = FirstFault(store, 0), FirstFault(store, 1)
    assert [fault.read() for fault in seen] == [None, None]
    assert [fault.write("rank 1 is out of step") for fault in seen] == [
        None,
        "rank 1 is out of step",
    ]
    assert [fault.read() for fault in seen] == ["rank 1 is out of step"] * 2
    assert FirstFault(store, 2).write("rank 0 has gone") == "rank 1 is out of step"
