"""Lengths in units: what can be read, what they are in samples, what is refused."""

import pytest
from pydantic import TypeAdapter, ValidationError

from megalite.config.amount import Amount, Length, Measure, in_samples, share_of
from megalite.errors import ConfigError

LENGTH = TypeAdapter(Length)
MEASURE = Measure(after_steps=lambda steps: 7 * steps, tokens=2048, epoch=1000, stage="sft")


@pytest.mark.parametrize(
    ("told", "samples"),
    [
        ("2000 steps", 14_000),
        ("1 step", 7),
        ("183105 samples", 183_105),
        ("183_105 samples", 183_105),
        ("220M samples", 220_000_000),
        ("375M tokens", 183_105),
        ("1.5b TOKENS", 732_422),
        ("32Ktokens", 16),
        ("2.5 epochs", 2500),
        ("1 epoch", 1000),
        ("0 steps", 0),
    ],
)
def test_an_amount_is_samples_of_its_unit(told: str, samples: int):
    settled = MEASURE.settled(LENGTH.validate_python(told), "schedule.warmup")
    assert settled == f"{samples} samples"
    assert in_samples(settled, 9) == samples
    assert MEASURE.settled(settled, "schedule.warmup") == settled


@pytest.mark.parametrize(
    ("told", "share"), [(0.01, 0.01), ("0.01", 0.01), ("2.5%", 0.025), (1, 1.0), ("1e-3", 0.001)]
)
def test_a_number_alone_is_a_share(told, share: float):
    found = LENGTH.validate_python(told)
    assert found == share_of(found, 12345) == share
    assert MEASURE.settled(found, "schedule.warmup") == found


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("2000", "a share of the run is at most 1: write the unit"),
        (1.5, "at most 1"),
        ("101%", "at most 1"),
        ("375M", "must be a share of the run such as 0.01, or a number of steps"),
        ("375M%", "must be"),
        ("2000 stepz", "'2000 stepz': must be"),
        ("-1 steps", "must be"),
        ("steps", "must be"),
        ("", "must be"),
        (-0.1, "must be"),
        (float("nan"), "must be"),
    ],
)
def test_what_is_no_amount_is_refused(told, says: str):
    with pytest.raises(ValidationError) as error:
        LENGTH.validate_python(told)
    assert says in error.value.errors()[0]["msg"]


def test_units_that_a_stage_lacks_are_refused_by_key():
    rows = Measure(after_steps=int, stage="sft")
    with pytest.raises(
        ConfigError, match="--schedule.end: tokens are a unit of pretraining; .*sft"
    ):
        rows.samples(Amount.read("5M tokens"), "schedule.end")
    with pytest.raises(ConfigError, match="--schedule.end: epochs can't be counted without data"):
        rows.samples(Amount.read("2 epochs"), "schedule.end")
