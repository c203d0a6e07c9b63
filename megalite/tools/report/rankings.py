"""How far a reward model can be believed: right by the difference of scores, calibration, length.

Read from ``rankings.json`` of a run's folder, which its last evaluation wrote.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megalite.errors import DataError
from megalite.tools.report.chart import Line, line_chart
from megalite.tools.report.table import table
from megalite.training.folder.files import RANKINGS

LENGTHS = {"longer": "is longer", "shorter": "is shorter", "equal": "is as long"}


def ranking_section(runs: Mapping[str, Path]) -> list[str]:
    """The section of the page about reward models; nothing where no run has one.

    Args:
        runs: their folders by name.

    Raises:
        DataError: a file can't be read; it is named.
    """
    found = {name: _read(folder / RANKINGS) for name, folder in runs.items()}
    sets = [
        (name if part == "heldout" else f"{name}, {part}", details)
        for name, parts in found.items()
        for part, details in parts.items()
    ]
    if not sets:
        return []
    parts = ["<h2>Reward models: held-out pairs</h2>"]
    for name, details in sets:
        parts += [f"<h3>{html.escape(name)}</h3>", *_of(details)]
    return parts


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {error}") from None
    return found


def _of(details: Mapping[str, Any]) -> list[str]:
    """Tables and a chart of one set of pairs."""
    parts = ['<div class="charts">', _calibration(details["by_score"]), "</div>"]
    parts.append(_by_difference("difference in score", details["by_score"]))
    if details["by_margin"]:
        parts.append(_by_difference("margin of the records", details["by_margin"]))
    rows = [
        (said, f"{one['pairs']:.0f}", _share(one["right"], one["pairs"]))
        for key, said in LENGTHS.items()
        if (one := details["by_length"][key])["pairs"]
    ]
    parts.append(table(("the better answer", "pairs", "ranked right"), rows))
    if details["longer_first"] is not None:
        parts.append(
            f"<p>Of pairs of unequal length the longer answer scores more in "
            f"{details['longer_first']:.1%}, and is the better one in "
            f"{details['longer_better']:.1%}.</p>"
        )
    return parts


def _by_difference(what: str, rows: Sequence[Mapping[str, float]]) -> str:
    bounds = [row["from"] for row in rows[1:]]
    cells = [
        (
            f"{row['from']:g} to {end:g}" if end is not None else f"{row['from']:g} and more",
            f"{row['pairs']:.0f}",
            f"{row['right']:.1%}",
            f"{row['said']:.1%}",
        )
        for row, end in zip(rows, [*bounds, None], strict=True)
    ]
    return table((what, "pairs", "ranked right", "by the scores"), cells)


def _calibration(rows: Sequence[Mapping[str, float]]) -> str:
    """The share ranked right against the probability that the scores give it."""
    points = [(row["said"], row["right"]) for row in rows]
    lines = [Line("pairs", points, 0), Line("as said", [(0.5, 0.5), (1.0, 1.0)], 5, 1)]
    return line_chart("Calibration", "share ranked right", lines, "probability by the scores")


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}"
