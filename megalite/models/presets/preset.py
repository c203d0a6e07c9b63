"""A published size of a model, as values of a ModelConfig."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A published size.

    Attributes:
        values: of a ModelConfig.
        source: where they are published.
    """

    values: Mapping[str, Any]
    source: str


def sizes(
    source: str, base: Mapping[str, Any], keys: str, rows: Mapping[str, Sequence[Any]]
) -> dict[str, Preset]:
    """Presets from a table: what all share, the columns' keys, and a row for each name."""
    columns = keys.split()
    return {
        name: Preset({**base, **dict(zip(columns, row, strict=True))}, source)
        for name, row in rows.items()
    }
