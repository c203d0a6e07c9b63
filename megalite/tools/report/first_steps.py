"""How long each start of a run took to the end of its first step, by part."""

import time
from collections.abc import Mapping
from pathlib import Path

from megalite.distributed.beginning import PARTS
from megalite.tools.report.table import table
from megalite.training.folder.history import read_history
from megalite.training.folder.starts import TIME

MOST_STARTS = 20  # of a run, the last ones


def first_step_section(runs: Mapping[str, Path]) -> list[str]:
    """The section of the page about it; nothing where no run's history tells.

    Args:
        runs: their folders by name.
    """
    rows = [
        (name, time.strftime(TIME, time.localtime(start.began_s)), *_numbers(start.first_step))
        for name, folder in runs.items()
        for start in [one for one in read_history(folder) if one.first_step][-MOST_STARTS:]
    ]
    heads = ("run", "began", "whole", *PARTS)
    return ["<h2>Seconds to the first step's end</h2>", table(heads, rows)] if rows else []


def _numbers(seconds: Mapping[str, float]) -> list[str]:
    """The sum, and each part."""
    return [
        f"{value:.1f}" for value in (sum(seconds.values()), *(seconds.get(p, 0.0) for p in PARTS))
    ]
