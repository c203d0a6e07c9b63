"""A window narrows any mask to what its definition says, key by key."""

import pytest
import torch
from torch import Tensor

from megalite.ops import RowIntervals
from megalite.ops import mask as masks

B, S = 2, 11
MASKS = {
    "causal": masks.causal(B, S),
    "full": masks.full(B, S, S),
    "a prefix": masks.prefix(torch.tensor([4, 9]), S),
    "packed": masks.packed([[5, 6], [3, 1, 4]], S),  # the second has padding behind
    "packed, full": masks.packed([[5, 6], [3, 1, 4]], S, is_causal=False),
    "padding": masks.padding(torch.tensor([S, 3]), S),
    "behind a cache": masks.causal(B, 2, S),
    "one row behind a cache and padding in front": RowIntervals(
        torch.tensor([[0], [6]], dtype=torch.int32), torch.full((B, 1), S, dtype=torch.int32), S
    ),
}


def distance(mask: RowIntervals) -> Tensor:
    """Key - the row's own key, [Sq, K]; the last row stands at the last key."""
    queries = mask.start.shape[1]
    own = torch.arange(queries) + mask.num_keys - queries
    return torch.arange(mask.num_keys) - own[:, None]


@pytest.mark.parametrize("width", [1, 3, 4, S, S + 5])
@pytest.mark.parametrize("name", MASKS)
def test_a_row_sees_its_own_key_and_those_right_before_it(name: str, width: int):
    mask = MASKS[name]
    narrow = mask.narrowed(width)
    assert torch.equal(narrow.materialize(), mask.materialize() & (distance(mask) > -width))
    assert bool((narrow.start <= narrow.end).all())
    assert torch.equal(narrow.is_empty, mask.is_empty)


@pytest.mark.parametrize("width", [1, 3, S])
@pytest.mark.parametrize("name", MASKS)
def test_both_ways_a_row_sees_as_many_on_either_side(name: str, width: int):
    mask = MASKS[name]
    near = distance(mask).abs() <= width
    assert torch.equal(mask.narrowed(width, True).materialize(), mask.materialize() & near)


def test_it_is_made_once_and_no_window_is_the_mask_itself():
    mask = masks.causal(B, S)
    assert mask.narrowed(0) is mask
    assert mask.narrowed(3) is mask.narrowed(3)
    assert mask.narrowed(3) is not mask.narrowed(3, True)
