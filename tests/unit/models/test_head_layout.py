"""Which heads a process computes: each query head once in all, beside the key head it reads."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megalite.distributed.mesh import Axis
from megalite.models.attention import HeadLayout


def pairs(layout: HeadLayout) -> list[tuple[int, int]]:
    """(query head, key head) of all that attention computes there, by their whole numbers."""
    queries, groups = range(*layout.queries), range(*layout.groups)
    if not queries:
        return []
    if layout.expand is not None:
        return [(q, groups[place]) for q, place in zip(queries, layout.expand, strict=True)]
    assert len(queries) % len(groups) == 0  # what attention asks of its heads
    ratio = len(queries) // len(groups)
    return [(q, groups[n // ratio]) for n, q in enumerate(queries)]


@st.composite
def layouts(draw) -> tuple[int, int, int]:
    """Query heads, key heads that divide them, and processes, at most one a query head."""
    groups, ratio = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    return groups * ratio, groups, draw(st.integers(1, min(groups * ratio, 16)))


def of(num_heads: int, num_groups: int, tp: int) -> list[HeadLayout]:
    return [HeadLayout.of(num_heads, num_groups, Axis("tp", tp, rank)) for rank in range(tp)]


@given(layouts())
def test_every_query_head_is_computed_once_with_its_own_key_head(case):
    num_heads, num_groups, tp = case
    computed = [pair for layout in of(*case) for pair in pairs(layout)]
    ratio = num_heads // num_groups
    assert computed == [(head, head // ratio) for head in range(num_heads)]


@given(layouts())
def test_heads_are_where_the_weights_that_make_them_are(case):
    """Of the query always, of key and value where they are split too; else all are everywhere."""
    num_heads, num_groups, tp = case
    found = of(*case)
    assert len({layout.split for layout in found}) == 1
    for axis, count in (("queries", num_heads), ("groups", num_groups)):
        if axis == "groups" and not found[0].split:
            continue
        chunks = [chunk.tolist() for chunk in torch.arange(count).chunk(tp)]
        held = [list(range(*getattr(layout, axis))) for layout in found]
        assert held == chunks + [[]] * (tp - len(chunks))


@given(layouts())
def test_no_key_head_is_made_for_nothing(case):
    """But for a process without query heads, whose copied weights still are part of the graph."""
    for layout in of(*case):
        read = {group for _, group in pairs(layout)}
        made = set(range(*layout.groups))
        if read:
            assert made == read
        else:
            assert len(made) == (0 if layout.split else 1)


@pytest.mark.parametrize(
    ("case", "split", "expand"),
    [
        ((8, 4, 2), True, [None, None]),
        ((8, 2, 4), False, [None] * 4),  # two processes read the same key head
        ((6, 3, 2), False, [(0, 0, 1), (0, 1, 1)]),  # a border inside the heads of a group
        ((5, 5, 4), True, [None] * 4),  # the last has none
        ((5, 1, 4), False, [None, None, None, ()]),
    ],
)
def test_key_heads_are_copied_where_they_do_not_follow_the_query(case, split, expand):
    found = of(*case)
    assert [layout.split for layout in found] == [split] * len(found)
    assert [layout.expand for layout in found] == expand
