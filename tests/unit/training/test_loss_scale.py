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


@pytest.mark.parametrize("between", [0, 1, 90])
def test_overflow_at_the_floor_ends_with_advice(between: int):
    """However seldom: a scale that only falls ends where it loses small gradients."""
    scale = LossScale.of("fp16")
    assert feed(scale, ([True] * between + [False]) * 1000) == 17 * (between + 1)
    assert scale.value == 1.0
    for part in ("at a loss scale of 1, the least", "bf16", "--optimizer.learning_rate"):
        assert part in scale.said


@pytest.mark.parametrize(("most_bad", "precision"), [(5, "fp16"), (20, "fp32")])
def test_bad_steps_in_a_row_end_with_advice(most_bad: int, precision: str):
    scale = LossScale.of(precision)
    assert feed(scale, [False] * 1000, precision, most_bad) == most_bad
    assert f"{most_bad} steps in a row" in scale.said
    assert ("bf16" in scale.said) == (precision == "fp16")


def test_every_second_step_bad_ends_with_advice_too():
    scale = LossScale.of("fp32")
    assert 50 < feed(scale, [True, False] * 500, "fp32") < 200
    assert "of the last 100 steps" in scale.said


def test_an_overflow_now_and_then_goes_on_forever():
    scale = LossScale.of("fp16")
    assert feed(scale, ([False] * 10 + [True] * 10 * GROWTH_STEPS) * 20) == 0
    scale = LossScale.of("fp32")
    assert feed(scale, ([False] * 10 + [True] * 90) * 50, "fp32") == 0


def test_a_restart_keeps_where_the_scale_was():
    history = ([False] * 3 + [True] * 700) * 4
    clean, before = LossScale.of("fp16"), LossScale.of("fp16")
    feed(clean, history)
    feed(before, history[:1500])
    after = LossScale.of("fp16")
    after.restore(before.facts())
    feed(after, history[1500:])
    assert after == clean
