"""The batch size as a function of samples, against Megatron-LM's formula and a loop over steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.config.amount import Measure
from megalite.data.loader import Share
from megalite.data.ramp import Ramp, RampConfig
from megalite.errors import ConfigError

BLOOM = RampConfig(start=192, increment=16, over="9765625 samples")
PALM = RampConfig(sizes={"0": 512, "50000 steps": 1024, "115000 steps": 2048})
MEASURE = Measure(after_steps=int, tokens=2048)


def megatron(start: int, increment: int, over: int, last: int, consumed: int) -> int:
    """``RampupBatchsizeNumMicroBatchesCalculator.update``."""
    if consumed > over:
        return last
    return start + consumed * ((last - start) // increment) // over * increment


@given(st.integers(0, 12_000_000))
def test_blooms_ramp_is_megatrons(consumed: int):
    ramp = BLOOM.ramp(2048)
    assert ramp.at(consumed) == megatron(192, 16, 9_765_625, 2048, consumed)
    assert len(ramp.sizes) == 117


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 400), st.integers(0, 12))
def test_steps_and_samples_are_those_of_a_loop(start: int, increment: int, over: int, grown: int):
    last = start + grown * increment
    config = RampConfig(start=start, increment=increment, over=f"{over} samples")
    ramp = config.ramp(last) if grown else Ramp.of(last)
    consumed = 0
    for step in range(60):
        assert ramp.after(step) == consumed
        assert ramp.after(60 - step, consumed) == ramp.after(60)
        assert ramp.steps_to(consumed) == step
        assert ramp.steps_to(consumed + 1) == step + 1
        consumed += ramp.at(consumed)


def test_places_in_steps_are_counted_over_the_sizes_before():
    found = PALM.settled(2048, MEASURE, 0)
    second = 50_000 * 512
    third = second + 65_000 * 1024
    assert found.sizes == {"0": 512, f"{second} samples": 1024, f"{third} samples": 2048}
    ramp = found.ramp(2048)
    assert [ramp.at(n) for n in (0, second - 1, second, third - 1, third, 10 * third)] == [
        512, 512, 1024, 1024, 2048, 2048,
    ]  # fmt: skip
    assert ramp.after(115_000) == third


def test_shares_and_tokens_are_settled_in_samples():
    config = RampConfig(start=192, increment=24, over="2.5%")
    assert config.settled(4224, MEASURE, 220_000_000).over == "5500000 samples"
    tokens = RampConfig(start=16, increment=16, over="12B tokens")
    assert tokens.settled(1536, MEASURE, 0).over == "5859375 samples"
    with pytest.raises(ConfigError, match="a share of a run whose length is told in steps"):
        config.settled(4224, MEASURE, 0)


@pytest.mark.parametrize(
    ("values", "last", "says"),
    [
        ({"start": 190, "increment": 16, "over": 0.1}, 2048, "start 190: .*use 176 or 192"),
        ({"start": 64, "increment": 16, "over": 0.1}, 32, "start 64: .*must reach .* 32: use 16"),
        ({"start": 192, "increment": 16}, 2048, "over 0.0: must be the length of the ramp"),
        ({"start": 192, "increment": 16, "over": "9 steps"}, 2048, "sizes takes steps"),
        ({"start": 2, "sizes": {"0": 2, "0.5": 4}}, 4, "sizes: says the whole ramp"),
        ({"sizes": {"9 steps": 2, "0.5": 4}}, 4, "must begin with the size at 0, came '9 steps'"),
        ({"sizes": {"0": 2, "0.5": 4}}, 8, "must end with train.global_batch_size 8, came 4"),
        ({"sizes": {"0": 0, "0.5": 4}}, 4, "'0': 0 samples: must be at least 1"),
        ({"sizes": {"0": 2, "soon": 4}}, 4, "'soon': must be a share"),
    ],
)
def test_a_ramp_that_leads_nowhere_is_refused(values, last: int, says: str):
    with pytest.raises(ConfigError, match=f"--train.batch_ramp.*{says}"):
        RampConfig(**values).check(last)


def test_sizes_out_of_order_are_refused():
    with pytest.raises(ConfigError, match="'20 steps': is at sample 20, not after '90 samples'"):
        RampConfig(sizes={"0": 1, "90 samples": 2, "20 steps": 3}).settled(3, MEASURE, 0)


@given(st.integers(0, 200))
def test_ranks_share_the_samples_of_each_step_of_a_ramp(consumed: int):
    ramp = Ramp((0, 20, 60), (4, 8, 12))
    shares = [Share(12, 2, rank, 2, ramp) for rank in range(2)]
    places = sorted(n for share in shares for part in share.places(consumed) for n in part)
    assert places == list(range(consumed, consumed + ramp.at(consumed)))
    assert all(share.samples(consumed) == ramp.at(consumed) for share in shares)
