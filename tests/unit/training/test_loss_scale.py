"""Overflow: the scale halves and grows, and a run that can't go on says what to try."""

import pytest

from megalite.errors import MegaliteError
from megalite.training.loss_scale import GROWTH_STEPS, START, LossScale


def feed(scale: LossScale, finite, precision: str = "fp16", most_bad: int = 20) -> int:
    """Steps until it raises."""
    for step, is_finite in enumerate(finite, 1):
        try:
            scale.update(is_finite, precision, most_bad, step)
        except MegaliteError as error:
            scale.said = str(error)
            return step
    return 0


def test_a_scale_halves_on_overflow_and_doubles_after_good_steps():
    scale = LossScale.of("fp16")
    feed(scale, [False, False])
    assert scale.value == START / 4
    feed(scale, [True] * GROWTH_STEPS)
    assert scale.value == START / 2


def test_overflow_at_the_floor_ends_with_advice():
    scale = LossScale.of("fp16")
    assert feed(scale, [False] * 1000) == 20
    assert scale.value == 1.0
    for part in ("20 steps in a row", "bf16", "--optimizer.learning_rate"):
        assert part in scale.said


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_every_second_step_bad_ends_with_advice_too(precision: str):
    scale = LossScale.of(precision)
    ended = feed(scale, [True, False] * 500, precision)
    assert 50 < ended < 200
    assert "of the last 100 steps" in scale.said
    assert ("bf16" in scale.said) == (precision == "fp16")


def test_an_overflow_now_and_then_goes_on_forever():
    scale = LossScale.of("fp16")
    assert feed(scale, ([False] * 10 + [True] * 90) * 50) == 0


def test_a_restart_keeps_where_the_scale_was():
    history = ([False] * 3 + [True] * 700) * 4
    clean, before = LossScale.of("fp16"), LossScale.of("fp16")
    feed(clean, history)
    feed(before, history[:1500])
    after = LossScale.of("fp16")
    after.restore(before.facts())
    feed(after, history[1500:])
    assert after == clean
