"""Numbers that change during a run."""

import pytest
from pydantic import TypeAdapter, ValidationError

from megalite.config.amount import Measure
from megalite.config.course import Course, settled, value_at
from megalite.errors import ConfigError

COURSE = TypeAdapter(Course)
MEASURE = Measure(after_steps=lambda steps: 10 * steps, tokens=100)


def test_values_hold_from_their_places_or_are_reached_in_a_line():
    told = COURSE.validate_python({"0": 1.0, "4 steps": 0.5, "to 8K tokens": 0.1, "0.9": 0.0})
    found = settled(told, MEASURE, 1000, "kl.coefficient")
    assert found == {"0": 1.0, "40 samples": 0.5, "to 80 samples": 0.1, "0.9": 0.0}
    values = [value_at(found, n, 1000) for n in (0, 39, 40, 60, 80, 899, 900, 2000)]
    assert values == pytest.approx([1.0, 1.0, 0.5, 0.3, 0.1, 0.1, 0.0, 0.0])
    assert value_at(settled(0.3, MEASURE, 9, "x"), 5, 9) == 0.3


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({}, "must have a value at 0, such as"),
        ({"4 steps": 1.0}, "must begin with its value at 0, .*came '4 steps'"),
        ({"to 0": 1.0}, "must begin with its value at 0, .*came 'to 0'"),
        ({"0": 1.0, "later": 2.0}, "'later': must be a share"),
    ],
)
def test_what_is_no_course_is_refused(told, says):
    with pytest.raises(ValidationError, match=says):
        COURSE.validate_python(told)


def test_places_out_of_order_are_refused_by_key():
    told = COURSE.validate_python({"0": 1.0, "0.5": 0.5, "4 steps": 0.1})
    with pytest.raises(ConfigError, match="--train.x '4 steps': is at sample 40, not after '0.5'"):
        settled(told, MEASURE, 1000, "train.x")
