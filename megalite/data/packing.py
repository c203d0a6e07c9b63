"""Which samples share a row."""

from collections.abc import Sequence


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into bins in their order, each into the first open bin with room.

    Args:
        lengths: of the items, each at most ``capacity``.
        capacity: of a bin.

    Returns:
        Items of each bin.
    """
    bins: list[list[int]] = []
    room: list[int] = []
    first_open = 0
    shortest = min(lengths, default=0)
    for item, length in enumerate(lengths):
        while first_open < len(bins) and room[first_open] < shortest:
            first_open += 1
        place = next((b for b in range(first_open, len(bins)) if room[b] >= length), None)
        if place is None:
            place = len(bins)
            bins.append([])
            room.append(capacity)
        bins[place].append(item)
        room[place] -= length
    return bins
