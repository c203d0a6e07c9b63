"""The points of a metric in a run's records."""

from collections.abc import Sequence

from megalite.data.records import Record


def series(records: Sequence[Record], key: str) -> list[tuple[float, float]]:
    """The (step, value) points of one metric."""
    return [
        (float(record["step"]), float(record[key]))
        for record in records
        if "step" in record and isinstance(record.get(key), (int, float))
    ]
