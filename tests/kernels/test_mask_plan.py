"""C++ and Python agree on the granularity of the tile plan."""

import re
from pathlib import Path

import pytest

from megalite.ops import mask as masks
from megalite.ops.mask_plan import TILE
from tests.kernels.backends import backend, device_of, on_every_backend

CSRC = Path(__file__).parents[2] / "csrc"


def test_the_granularity_is_defined_once_and_is_that_of_python():
    files = [path for path in CSRC.rglob("*") if path.is_file()]
    found = [
        (path.name, int(value))
        for path in files
        for value in re.findall(r"\bkPlanTile = (\d+);", path.read_text(encoding="utf-8"))
    ]
    assert found == [("mask_plan.h", TILE)]


@on_every_backend
@pytest.mark.parametrize("size", [1, TILE - 1, TILE, TILE + 1, 3 * TILE])
def test_a_plan_has_an_entry_for_each_tile(name: str, size: int):
    mask = masks.full(2, size, size + TILE).to(device_of(name))
    with backend(name):
        rows, keys = mask.plan
    tiles = -(-size // TILE)
    assert rows.shape == (2, tiles, 4)
    assert keys.shape == (2, tiles + 1, 3)
    assert (keys[:, : size // TILE + 1, 2] == -1).all()  # all bits of a whole tile
