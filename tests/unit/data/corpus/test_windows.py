"""Windows of a store against a plain loop over its tokens."""

import numpy as np
import pytest

from megalite.data.corpus.blend import Blend
from megalite.data.corpus.store import StoreWriter, TokenStore
from megalite.data.corpus.windows import Windows
from megalite.errors import DataError
from megalite.models.batch import IGNORE

LENGTHS = (5, 1, 7, 3, 12, 2, 1, 9)


@pytest.fixture
def store(tmp_path):
    writer = StoreWriter(tmp_path / "store", np.uint16)
    for number, length in enumerate(LENGTHS):
        writer.add(100 * (number + 1) + np.arange(length))
    writer.close()
    return TokenStore(tmp_path / "store")


def stream() -> list[tuple[int, int]]:
    """(document, place in it) of every token."""
    return [(d, place) for d, length in enumerate(LENGTHS) for place in range(length)]


@pytest.mark.parametrize("length", [2, 4, 7])
def test_a_token_sees_its_own_document_from_its_start(store, length):
    windows, tokens = Windows(store, length), stream()
    assert len(windows) == (len(tokens) - 1) // length
    for number in range(len(windows)):
        example, own = windows[number], tokens[number * length : number * length + length + 1]
        assert example.decoder.tokens.tolist() == [100 * (d + 1) + place for d, place in own[:-1]]
        for row, (document, place) in enumerate(own[:-1]):
            following, next_place = own[row + 1]
            target = 100 * (following + 1) + next_place if following == document else IGNORE
            assert example.labels[row] == target
            seen = [i for i, (d, _) in enumerate(own[:-1]) if d == document and i <= row]
            assert (example.decoder.mask.start[row], example.decoder.mask.end[row]) == (
                seen[0],
                row + 1,
            )
            assert example.decoder.positions[row] == row - seen[0], place


def test_documents_that_are_not_separate_are_one_text(store):
    example, tokens = Windows(store, 7, separate=False)[1], stream()[7:15]
    assert example.labels.tolist() == [100 * (d + 1) + place for d, place in tokens[1:]]
    assert example.decoder.mask.start.tolist() == [0] * 7
    assert example.decoder.mask.end.tolist() == list(range(1, 8))


def test_a_blend_reads_each_dataset_in_its_share(store):
    windows = Windows(store, 4)
    blend = Blend([windows, windows], [3, 1])
    firsts = [int(blend[number].decoder.tokens[0]) for number in range(len(blend))]
    assert len(blend) == 2 * len(windows)
    most = [int(windows[number % len(windows)].decoder.tokens[0]) for number in range(14)]
    least = [int(windows[number].decoder.tokens[0]) for number in range(4)]
    assert sorted(firsts) == sorted(most + least)


def test_a_store_without_a_whole_window_is_refused(store):
    with pytest.raises(DataError, match="has 40 tokens"):
        Windows(store, 40)


def test_documents_of_one_token_each_have_nothing_to_learn_apart(tmp_path):
    writer = StoreWriter(tmp_path / "ends", np.uint16)
    for _ in range(20):
        writer.add([7])
    writer.close()
    store = TokenStore(tmp_path / "ends")
    with pytest.raises(DataError, match="ends: no document has 2 tokens, the least to learn from"):
        Windows(store, 4)
    assert (Windows(store, 4, separate=False)[0].labels == 7).all()
