"""A number that changes during a run: { 0 = 1.0, "40B tokens" = 0.3, "to 60B tokens" = 0.1 }.

Each entry is a place of the run and the value from there on; ``to`` means that the value moves
there in a straight line from the place before. Places are lengths from the run's beginning.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Annotated

from pydantic import AfterValidator

from megalite.config.amount import Amount, Measure, in_samples
from megalite.errors import ConfigError

TO = "to "
EXAMPLE = '{ 0 = 1.0, "40B tokens" = 0.3, "to 60B tokens" = 0.1 }'


def _checked(told: float | dict[str, float]) -> float | dict[str, float]:
    if not isinstance(told, dict):
        return told
    if not told:
        raise ValueError(f"must have a value at 0, such as {EXAMPLE}")
    for place in told:
        Amount.read(place.removeprefix(TO))
    first = next(iter(told))
    if Amount.read(first.removeprefix(TO)).number or first.startswith(TO):
        raise ValueError(f"must begin with its value at 0, such as {EXAMPLE}, came {first!r}")
    return told


Course = Annotated[float | dict[str, float], AfterValidator(_checked)]


def values_of(told: float | dict[str, float]) -> list[float]:
    """All values that a course has at its places."""
    return list(told.values()) if isinstance(told, dict) else [told]


def settled(
    told: float | dict[str, float], measure: Measure, total: int, key: str
) -> float | dict[str, float]:
    """The same with places in samples or shares.

    Raises:
        ConfigError: the stage has no such unit, or places are not in order.
    """
    if not isinstance(told, dict):
        return told
    places = {}
    for place, value in told.items():
        is_line = place.startswith(TO)
        found = str(measure.settled(place.removeprefix(TO), key))
        places[f"{TO if is_line else ''}{found}"] = value
    for (place, (one, *_)), (other, (two, *_)) in pairwise(
        zip(told, points(places, total), strict=True)
    ):
        if two <= one:
            raise ConfigError(
                f"--{key} {other!r}: is at sample {two:,}, not after {place!r} at {one:,}: give "
                "them in order"
            )
    return places


def points(told: dict[str, float], total: int) -> Iterator[tuple[int, float, bool]]:
    """Sample, value, and whether the way to it is a line, of each place of a settled course."""
    for place, value in told.items():
        yield in_samples(place.removeprefix(TO), total), value, place.startswith(TO)


def value_at(told: float | dict[str, float], samples: int, total: int) -> float:
    """The value for the step that begins after ``samples`` of ``total``."""
    if not isinstance(told, dict):
        return told
    before, here = 0, 0.0
    for place, value, is_line in points(told, total):
        if samples < place:
            return (
                here + (value - here) * (samples - before) / (place - before) if is_line else here
            )
        before, here = place, value
    return here
