"""Samples of a run's order that are never learned, as ranges of places in that order."""

from collections.abc import Iterable, Sequence

Ranges = tuple[tuple[int, int], ...]  # [first, end), in order, none touching the next


def merged(ranges: Iterable[Sequence[int]]) -> Ranges:
    """Ranges in order, those that overlap or touch as one, and none that is empty."""
    found: list[tuple[int, int]] = []
    for first, end in sorted((first, end) for first, end in ranges if first < end):
        if found and first <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((first, end))
    return tuple(found)


def place_of(number: int, skipped: Ranges) -> int:
    """Place in the run's order of the ``number``-th sample that is learned, both from 0."""
    for first, end in skipped:
        if number < first:
            break
        number += end - first
    return number


def learned_to(count: int, skipped: Ranges) -> int:
    """Places of the run's order that ``count`` learned samples reach over; the next is not."""
    return place_of(count - 1, skipped) + 1 if count else 0


def is_same_before(place: int, one: Ranges, other: Ranges) -> bool:
    """Whether two orders skip the same of the places before ``place``."""
    return _before(place, one) == _before(place, other)


def _before(place: int, ranges: Ranges) -> Ranges:
    return merged((first, min(end, place)) for first, end in ranges)


def in_words(ranges: Ranges) -> str:
    """Ranges for a sentence, both ends included."""
    return ", ".join(f"{first}-{end - 1}" for first, end in ranges)
