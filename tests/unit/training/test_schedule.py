"""The learning rate is a function of samples, not of steps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megalite.config.amount import Measure
from megalite.errors import ConfigError
from megalite.training.config import ScheduleConfig
from megalite.training.curve import rate
from megalite.training.schedule import Clock, settled

MEASURE = Measure(after_steps=lambda steps: 10 * steps, stage="pretrain")
GPT3 = 300_000_000_000 // 2048  # samples of its run
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


@pytest.mark.parametrize(
    ("kind", "more", "published"),
    [
        ("polynomial", {"power": 2.0}, lambda p: 1 - 0.9 * (1 - (1 - p) ** 2)),
        ("cosine", {"cycles": 4}, lambda p: 1 - 0.45 * (1 - math.cos(math.pi * (4 * p % 1)))),
    ],
)
def test_shapes_of_a_decay_are_the_published_ones(kind, more, published):
    config = ScheduleConfig(kind=kind, warmup="100 samples", **more)
    for samples in range(100, 1100, 45):
        expected = published((samples - 100) / 1000)
        assert rate(config, samples, 1100) == pytest.approx(expected, abs=1e-9)
    assert rate(config, 1100, 1100) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("kind", "published"),
    [
        ("linear", lambda p: 1 - 0.9 * p),
        ("cosine", lambda p: 0.55 + 0.45 * math.cos(math.pi * p)),
        ("sqrt", lambda p: 1 - 0.9 * math.sqrt(p)),
        ("exponential", lambda p: 0.1**p),
    ],
)
def test_wsd_decays_by_its_kind(kind, published):
    config = ScheduleConfig(kind="wsd", warmup=0.0, decay="200 samples", decay_kind=kind)
    assert rate(config, 799, 1000) == 1.0
    for samples in range(800, 1001, 11):
        expected = published((samples - 800) / 200)
        assert rate(config, samples, 1000) == pytest.approx(expected, abs=1e-9)


def test_t5s_rate_is_the_inverse_root_of_steps_after_ten_thousand():
    config = ScheduleConfig(
        kind="inverse_sqrt", warmup=f"{10_000 * 128} samples", warmup_start=1.0, floor=0.0
    )
    for step in range(0, 1_000_000, 49_999):
        published = 1 / math.sqrt(max(step, 10_000))
        ours = 0.01 * rate(config, step * 128, 1_000_000 * 128)
        assert ours == pytest.approx(published, rel=1e-12)


def test_a_decay_may_end_before_the_run_and_the_floor_then_stays():
    config = ScheduleConfig(warmup="183105 samples", end=f"{260 * GPT3 // 300} samples")
    for share in range(21):
        samples = share * GPT3 // 20
        progress = min((samples - 183_105) / (260 * GPT3 // 300 - 183_105), 1.0)
        published = 0.55 + 0.45 * math.cos(math.pi * progress)
        if share:
            assert rate(config, samples, GPT3) == pytest.approx(published, abs=1e-9)
    assert rate(config, 270 * GPT3 // 300, GPT3) == pytest.approx(0.1)


def test_a_warm_up_may_begin_above_zero():
    config = ScheduleConfig(kind="constant", warmup="9 samples", warmup_start=0.1)
    rates = [rate(config, samples, 100) for samples in range(11)]
    assert rates == pytest.approx([0.1 + 0.09 * (n + 1) for n in range(9)] + [1, 1])


PHASES = (
    {"begin": "400 samples", "kind": "linear", "peak": 0.5, "floor": 0.0, "end": "100 samples"},
    {"begin": "600 samples", "warmup": 0.5, "kind": "constant", "peak": 0.25},
)


def test_phases_follow_one_another_each_counted_from_its_beginning():
    schedule = ScheduleConfig(kind="constant", warmup=0.0, phases=PHASES)
    clock = Clock(settled(schedule, MEASURE, 1000), 2.0, 1000)
    found = [clock.learning_rate(n) for n in (0, 399, 400, 450, 500, 599, 800, 999)]
    assert found == pytest.approx([2, 2, 1, 0.5, 0, 0, 0.5, 0.5])
    assert clock.learning_rate(699) == pytest.approx(0.5 * 100 / 201)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"warmup": "3 steps", "end": "20 samples"},
            "end 20 samples: is at sample 20, the warm-up",
        ),
        ({"warmup": 0.5, "end": "3 steps"}, "end 3 steps: is at sample 30, the warm-up of .* 0.5"),
        ({"warmup": "200 steps"}, "end 1.0: is at sample 1,000, the warm-up of .* ends at 2,000"),
        ({"kind": "wsd", "decay": "95 steps", "warmup": 0.1}, "decay 95 steps must fit between"),
        ({"phases": (PHASES[1], PHASES[0])}, r"phases.1.begin .*: is at sample 400, .* overlap"),
        ({"phases": ({**PHASES[0], "end": "300 samples"}, PHASES[1])}, "phases must not overlap"),
        ({"phases": ({"begin": 0.0},)}, "phases.0.begin 0.0: is at sample 0"),
        ({"phases": ({"begin": "5 epochs"},)}, "epochs can't be counted without"),
    ],
)
def test_lengths_that_overlap_are_refused_with_both_places(values, says):
    with pytest.raises(ConfigError, match=f"--schedule.*{says}"):
        settled(ScheduleConfig(**values), MEASURE, 1000)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"kind": "inverse_sqrt", "warmup": 0.0}, "warmup 0.0: must be more than 0"),
        ({"kind": "wsd", "decay_kind": "exponential", "floor": 0.0}, "floor 0.0: must be more"),
        ({"kind": "constant", "end": 0.5}, "schedule.end 0.5: kind constant has no such thing"),
        ({"kind": "linear", "power": 2.0}, "schedule.power 2.0: kind linear has no such thing"),
        ({"cycles": 2, "kind": "wsd"}, "schedule.cycles 2: kind wsd has no such thing"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        ScheduleConfig(**values)
