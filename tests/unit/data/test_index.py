"""The index of data in C++ and in Python: documents, blending, packing."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megalite import _index as compiled
from megalite.data import index as chosen
from megalite.data import plain_index as plain
from megalite.data.packing import first_fit as packed_rows

both = pytest.mark.parametrize("index", [compiled, plain], ids=["compiled", "plain"])

LENGTHS = st.lists(st.integers(0, 9), max_size=200)


def document_of_each_token(lengths: list[int]) -> list[tuple[int, int]]:
    return [(d, place) for d, length in enumerate(lengths) for place in range(length)]


def spelled_out(ranges: np.ndarray) -> list[tuple[int, int]]:
    return [(d, place) for d, first, end in ranges.tolist() for place in range(first, end)]


@both
@given(LENGTHS, st.data())
def test_token_ranges_are_the_tokens_in_order(index, lengths, data):
    index, tokens = (
        index.DocumentIndex(np.array(lengths, np.int64)),
        document_of_each_token(lengths),
    )
    assert index.num_tokens == len(tokens)
    first = data.draw(st.integers(0, len(tokens)))
    last = data.draw(st.integers(first, len(tokens)))
    ranges = index.token_ranges(first, last)
    assert spelled_out(ranges) == tokens[first:last]
    assert len(set(ranges[:, 0].tolist())) == len(ranges)


@both
@given(LENGTHS, st.integers(1, 7), st.data())
def test_piece_ranges_are_documents_cut_at_the_longest(index, lengths, longest, data):
    index = index.DocumentIndex(np.array(lengths, np.int64), longest)
    pieces = [
        [d, first, min(first + longest, length)]
        for d, length in enumerate(lengths)
        for first in range(0, length, longest)
    ]
    assert index.num_pieces == len(pieces)
    first = data.draw(st.integers(0, len(pieces)))
    last = data.draw(st.integers(first, len(pieces)))
    assert index.piece_ranges(first, last).tolist() == pieces[first:last]


@both
def test_a_large_index_keeps_the_lengths_alive_and_finds_its_last_token(index):
    index = index.DocumentIndex(np.full(100_000, 1 << 30, np.int64))
    last = index.num_tokens - 1
    assert index.token_ranges(last, last + 1).tolist() == [[99_999, (1 << 30) - 1, 1 << 30]]


def by_time(counts: list[int]) -> list[tuple[int, int]]:
    stands = [
        (Fraction(2 * inside + 1, 2 * count), dataset, inside)
        for dataset, count in enumerate(counts)
        for inside in range(count)
    ]
    return [(dataset, inside) for _, dataset, inside in sorted(stands)]


@both
@settings(max_examples=50)
@given(counts=st.lists(st.integers(1, 40), min_size=1, max_size=8))
@example(counts=[1, 1, 1])
@example(counts=[39, 1])
def test_a_blend_is_the_order_of_times(index, counts):
    blend = index.Blend(counts)
    assert len(blend) == sum(counts)
    assert [blend.at(number) for number in range(len(blend))] == by_time(counts)


@both
@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=6), st.data())
def test_a_blend_of_any_size_holds_datasets_in_proportion(index, counts, data):
    blend, total = index.Blend(counts), sum(counts)
    number = data.draw(st.integers(0, total - 1))
    dataset, inside = blend.at(number)
    assert 0 <= inside < counts[dataset]
    assert abs(Fraction(number * counts[dataset], total) - inside) <= len(counts)


def plain_first_fit(items: list[tuple[int, int]], room: tuple[int, int]) -> list[list[int]]:
    rows: list[list[int]] = []
    left: list[list[int]] = []
    for number, (decoder, encoder) in enumerate(items):
        fits = [row for row, (a, b) in enumerate(left) if decoder <= a and encoder <= b]
        row = fits[0] if fits else len(rows)
        if not fits:
            rows.append([])
            left.append(list(room))
        rows[row].append(number)
        left[row][0] -= decoder
        left[row][1] -= encoder
    return rows


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 13)), max_size=80))
def test_first_fit_of_two_lengths(items):
    decoder, encoder = [a for a, _ in items], [b for _, b in items]
    rows = [row.tolist() for row in packed_rows(decoder, 20, encoder, 13)]
    assert rows == plain_first_fit(items, (20, 13))
    alone = [row.tolist() for row in packed_rows(decoder, 20)]
    assert alone == plain_first_fit([(a, 0) for a in decoder], (20, 0))
    lengths = np.array(decoder, np.int64), 20, np.array(encoder, np.int64), 13
    for ours, theirs in zip(plain.first_fit(*lengths), compiled.first_fit(*lengths), strict=True):
        assert ours.tolist() == theirs.tolist()


def test_the_compiled_index_is_taken_where_it_is_built():
    assert chosen.first_fit is compiled.first_fit


@both
@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda index: index.first_fit(np.array([3, 9]), 8),
            ValueError,
            r"item 1: .* \[0, 8 and 0\], came 9",
        ),
        (lambda index: index.first_fit(np.array([-1]), 8), ValueError, "item 0: .* came -1"),
        (
            lambda index: index.first_fit(np.array([1]), 8, np.array([1, 2]), 8),
            ValueError,
            "as many as",
        ),
        (lambda index: index.first_fit(np.zeros((2, 2), np.int64), 8), ValueError, "one dimension"),
        (lambda index: index.first_fit(np.array([1.5]), 8), TypeError, "incompatible"),
        (lambda index: index.Blend([]), ValueError, "at least one"),
        (lambda index: index.Blend([3, 0]), ValueError, "positive"),
        (lambda index: index.Blend([1 << 60, 1]), ValueError, "2\\^60"),
        (lambda index: index.Blend([2, 2]).at(4), IndexError, r"sample 4: must lie in \[0, 4\)"),
        (
            lambda index: index.DocumentIndex(np.array([2, -1])),
            ValueError,
            "document 1: .* came -1",
        ),
        (lambda index: index.DocumentIndex(np.array([2]), 0), ValueError, "longest"),
        (
            lambda index: index.DocumentIndex(np.array([2])).token_ranges(1, 3),
            IndexError,
            r"\[0, 2\)",
        ),
        (
            lambda index: index.DocumentIndex(np.array([2])).piece_ranges(-1, 1),
            IndexError,
            "pieces",
        ),
    ],
)
def test_wrong_input_is_an_error_that_says_what_must_hold(index, call, error, says):
    with pytest.raises(error, match=says):
        call(index)
