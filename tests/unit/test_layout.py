"""A layout that doesn't fit is refused with the number to change and layouts that fit."""

import pytest

from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.models.layout import Demand, check_layout, faults, nearest
from megalite.parallel.mesh import ParallelConfig, factorisations

MODEL = ModelConfig(num_layers=4, num_heads=6, hidden_size=48)


def refused(parallel: dict, *sizes: int) -> str:
    with pytest.raises(ConfigError) as error:
        check_layout(Demand(MODEL, *sizes), ParallelConfig(**parallel))
    return str(error.value)


@pytest.mark.parametrize(
    ("parallel", "sizes", "says"),
    [
        (
            {"tp": 3},
            (8, 8),
            ["pp 1 x replicate any x shard 1 x tp 3 must be 8", "replicate 2 shard 1 tp 4"],
        ),
        ({"tp": 7}, (7, 7), ["--parallel.tp 7", "num_heads, 6", "use 6, 5 or 4", "tp 1"]),
        ({"pp": 6}, (6, 6), ["--parallel.pp 6", "has 4", "use 4, 3 or 2", "pp 3 replicate 2"]),
        ({"shard": 4}, (4, 6), ["global_batch_size 6", "use 4 or 8", "shard 2"]),
        ({"pp": 4}, (4, 2), ["global_batch_size 2", "gives 2 micro-batches", "use 4", "gpipe"]),
        (
            {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2},
            (2, 5),
            ["gives 5 micro-batches", "multiple of 2", "use 4 or 6", "pp 1"],
        ),
        ({"pp": 2, "chunks_per_rank": 2}, (2, 4), ["--parallel.chunks_per_rank 2", "1f1b"]),
        ({"pp": 2}, (2, 6, 1, 4), ["gives 1.5 micro-batches", "use 8"]),
    ],
)
def test_the_number_to_change_and_layouts_that_fit_are_named(parallel, sizes, says):
    message = refused(parallel, *sizes)
    for part in says:
        assert part in message, message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("world_size", [1, 2, 6, 8, 12])
def test_every_layout_that_is_offered_fits_and_is_of_as_many_processes(world_size):
    demand, wanted = Demand(MODEL, world_size, 24), ParallelConfig(pp=5, tp=5)
    offered = nearest(demand, wanted, count=100)
    assert offered
    for text in offered:
        words = text.split()
        sizes = {name: int(size) for name, size in zip(words[::2], words[1::2], strict=True)}
        assert list(faults(demand, ParallelConfig(**sizes))) == []
    left_out = len(factorisations(world_size)) - len(offered)
    assert (left_out > 0) == (world_size > 4)  # tp 8, pp 6 and the like
