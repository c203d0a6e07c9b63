"""A layout that doesn't fit is refused with the number to change and layouts that fit."""

from dataclasses import replace

import pytest

from megalite.distributed.mesh import ParallelConfig, factorisations
from megalite.engine.layout import BatchSizes, Demand, check_layout, faults, nearest
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig

MODEL = ModelConfig(num_layers=4, num_heads=6, hidden_size=48)
SIZES = {"num_heads": 6, "hidden_size": 48, "ffn_size": 96, "vocab_size": 48}
TWO_STACKS = ModelConfig(num_encoder_layers=5, num_layers=2, **SIZES)


def refused(parallel: dict, world_size: int, *batch: int) -> str:
    with pytest.raises(ConfigError) as error:
        check_layout(Demand(MODEL, world_size, BatchSizes(*batch)), ParallelConfig(**parallel))
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
        (
            {"pp": 2, "schedule": "interleaved", "chunks_per_rank": 2},
            (2, 6, 1, 2, True),
            ["gives 9 micro-batches, with text beside them, a step", "multiple of 4", "use 4 or 8"],
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


@pytest.mark.parametrize(
    ("model", "parallel", "says"),
    [
        (MODEL, {"pp": 2}, "this model has no encoder: use 0"),
        (TWO_STACKS, {"pp": 1}, "this model is not cut: pp is 1: use 0"),
        (TWO_STACKS, {"pp": 2}, "5 of the encoder and 2 of the decoder: use 0 or 1"),
        (TWO_STACKS, {"pp": 6}, "each of 6 stages needs a block of its stack"),
    ],
)
def test_an_encoder_that_can_not_have_its_stages_is_refused(model, parallel, says):
    with pytest.raises(ConfigError, match="--parallel.encoder_stages 3") as error:
        check_layout(Demand(model), ParallelConfig(encoder_stages=3, **parallel))
    assert says in str(error.value)


@pytest.mark.parametrize("world_size", [1, 2, 6, 8, 12])
def test_every_layout_that_is_offered_fits_and_is_of_as_many_processes(world_size):
    demand, wanted = Demand(MODEL, world_size, BatchSizes(24)), ParallelConfig(pp=5, tp=5)
    offered = nearest(demand, wanted, count=100)
    assert offered
    for text in offered:
        words = text.split()
        sizes = {name: int(size) for name, size in zip(words[::2], words[1::2], strict=True)}
        assert list(faults(demand, ParallelConfig(**sizes))) == []
    left_out = len(factorisations(world_size)) - len(offered)
    assert (left_out > 0) == (world_size > 4)  # tp 8, pp 6 and the like


def test_all_sizes_of_a_ramp_that_do_not_fit_are_listed_with_the_nearest_that_do():
    batch = BatchSizes(40, 2, before=(4, 12, 16, 22))
    message = next(faults(Demand(MODEL, 4, batch), ParallelConfig(shard=4)))
    assert message == (
        "--train.batch_ramp: 3 of its sizes don't fit micro_batch_size 2 x 4 data-parallel "
        "processes and pp 1; each, and in brackets the nearest that do: 4 (8), 12 (8 or 16), "
        "22 (16 or 24)"
    )
    too_large = replace(batch, global_batch_size=42)
    message = next(faults(Demand(MODEL, 4, too_large), ParallelConfig(shard=4)))
    assert "4 of its sizes" in message and message.endswith("22 (16 or 24), 42 (40 or 48)")
    fits = BatchSizes(40, 2, before=(8, 16, 24, 32))
    message = next(faults(Demand(MODEL, 4, replace(fits, global_batch_size=42)), ParallelConfig()))
    assert message.startswith("--train.global_batch_size 42: must be a multiple of")
    assert next(faults(Demand(MODEL, 4, fits), ParallelConfig(shard=4)), None) is None
    piped = ParallelConfig(pp=4)
    message = next(faults(Demand(MODEL, 4, BatchSizes(40, 2, before=(4, 12))), piped))
    assert "2 data-parallel" not in message
    assert message.endswith("4 (8)")
