"""Which placements of PPO's frozen models fit, and which processes serve whom."""

import pytest

from megalite.distributed.mesh import ParallelConfig
from megalite.engine.layout import BatchSizes, Demand
from megalite.errors import ConfigError
from megalite.models.config import ModelConfig
from megalite.stages.rlhf.config import PPOConfig
from megalite.stages.rlhf.placement import FrozenConfig, Side, check_placement

MODEL = ModelConfig(num_layers=4, num_heads=6, hidden_size=48)


def refused(world_size: int, parallel: dict, frozen: dict) -> str:
    with pytest.raises(ConfigError) as error:
        check_placement(
            Demand(MODEL, world_size, BatchSizes(8)),
            ParallelConfig(**parallel),
            FrozenConfig(**frozen),
        )
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize(
    ("world_size", "parallel", "frozen", "says"),
    [
        (4, {}, {"tp": 2}, ["need processes of their own"]),
        (4, {}, {"processes": 4}, ["leaves none of 4", "fit: processes 3 tp 3"]),
        (4, {"tp": 2}, {"processes": 1}, ["leaves 3", "tp 2 must be 3", "fit: processes 2 tp 2"]),
        (
            4,
            {},
            {"processes": 1},
            ["leaves 3", "multiple of", "global_batch_size 8", "processes 2 tp 1"],
        ),
        (6, {}, {"processes": 2, "tp": 7}, ["--frozen: pp 1", "tp 7 must be 2"]),
        (16, {}, {"processes": 8, "tp": 8}, ["--frozen.tp 8: must be at most num_heads, 6"]),
        (
            8,
            {"tp": 2},
            {"processes": 4, "tp": 1},
            ["4 data-parallel ranks", "divide the 2", "fit: processes 4 tp 2"],
        ),
        (4, {"tp": 3, "pp": 2}, {"processes": 1}, ["leaves 3", "layouts of the other 3", "tp 3"]),
    ],
)
def test_a_placement_that_does_not_fit_is_refused_with_those_that_do(
    world_size, parallel, frozen, says
):
    message = refused(world_size, parallel, frozen)
    for part in says:
        assert part in message, message


def test_what_is_offered_fits():
    demand, parallel = Demand(MODEL, 8, BatchSizes(8)), ParallelConfig(tp=2)
    offered = refused(8, {"tp": 2}, {"processes": 3}).split("fit: ")[1].split(", or ")
    assert len(offered) == 3
    for text in offered:
        _, processes, _, tp = text.split()
        check_placement(demand, parallel, FrozenConfig(processes=int(processes), tp=int(tp)))


def test_a_frozen_layout_that_cuts_a_quantised_block_is_refused():
    sizes = {"num_heads": 6, "hidden_size": 384, "ffn_size": 192}
    told = {"model": sizes, "reward": {"function": "length", "rules": {"length": 3}}}
    told["lora"] = {"rank": 2, "base_format": "nf4"}
    PPOConfig(**told, frozen={"processes": 3, "tp": 3}).check_inputs()
    with pytest.raises(ConfigError, match="frozen.tp 2 cuts feed_forward.output after 96 of its"):
        PPOConfig(**told, frozen={"processes": 2, "tp": 2}).check_inputs()


def test_a_sides_ranks_are_those_of_a_mesh():
    side = Side.of(3, 12, ParallelConfig(pp=2, replicate=1, shard=3, tp=2))
    assert (side.pp, side.dp, side.tp) == (2, 3, 2)
    assert side.ranks(1) == [5, 6, 11, 12]
    assert sorted(rank for number in range(3) for rank in side.ranks(number)) == list(range(3, 15))
