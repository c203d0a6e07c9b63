"""The learning rate is a function of samples, not of steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.errors import ConfigError
from megalite.training.config import ScheduleConfig
from megalite.training.schedule import rate

KINDS = ("cosine", "linear", "constant", "wsd")


@given(st.sampled_from(KINDS), st.integers(0, 99), st.integers(1, 64))
def test_a_batch_of_another_size_meets_the_same_rates(kind, step, batch):
    """After warm-up; within it the first step is 1 sample, not 1 step, into it."""
    config = ScheduleConfig(kind=kind, warmup=0.0)
    assert rate(config, step, 100) == pytest.approx(rate(config, step * batch, 100 * batch))


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_rises_linearly_to_the_peak(kind):
    config = ScheduleConfig(kind=kind, warmup=0.1)
    rates = [rate(config, samples, 1000) for samples in range(0, 101)]
    assert 0 < rates[0] < 0.02
    steps = [b - a for a, b in zip(rates[:99], rates[1:100], strict=True)]
    assert max(steps) == pytest.approx(min(steps))
    assert rates[100] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(
    ("kind", "quarter", "half", "end"),
    [
        ("cosine", 1 - 0.9 * 0.146447, 0.55, 0.1),
        ("linear", 0.775, 0.55, 0.1),
        ("constant", 1, 1, 1),
        ("wsd", 1, 1, 0.1),
    ],
)
def test_each_kind_has_its_shape(kind, quarter, half, end):
    config = ScheduleConfig(kind=kind, warmup=0.0, floor=0.1, decay=0.2)
    values = [rate(config, samples, 1000) for samples in (250, 500, 1000)]
    assert values == pytest.approx([quarter, half, end], abs=1e-6)
    assert rate(config, 5000, 1000) == pytest.approx(end)


def test_wsd_decays_over_its_last_share_only():
    config = ScheduleConfig(kind="wsd", warmup=0.0, floor=0.0, decay=0.2)
    assert [rate(config, s, 1000) for s in (799, 800, 900)] == pytest.approx([1, 1, 0.5])


@given(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_rates_stay_between_the_floor_and_the_peak(kind, warmup, decay, floor):
    decay = min(decay, 1 - warmup)
    config = ScheduleConfig(kind=kind, warmup=warmup, decay=decay, floor=floor)
    for samples in range(0, 101, 7):
        value = rate(config, samples, 100)
        low = 0.0 if samples / 100 < warmup else floor
        assert low - 1e-9 <= value <= 1 + 1e-9


@pytest.mark.parametrize(("warmup", "decay"), [(0.6, 0.5), (1.0, 0.01), (0.81, 0.2)])
def test_a_decay_that_begins_within_the_warm_up_is_refused(warmup, decay):
    with pytest.raises(
        ConfigError, match=r"--schedule.decay .*: must be at most .*schedule.warmup"
    ):
        ScheduleConfig(kind="wsd", warmup=warmup, decay=decay)
    ScheduleConfig(kind="cosine", warmup=warmup, decay=decay)  # it has no decay of its own


@given(st.integers(0, 1000))
def test_a_warm_up_and_a_decay_that_share_a_run_meet_at_the_peak(share):
    config = ScheduleConfig(kind="wsd", warmup=share / 1000, decay=1 - share / 1000, floor=0.0)
    assert rate(config, share, 1000) == pytest.approx(1.0, abs=1e-9)
