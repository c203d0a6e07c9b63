"""What runs met and what it cost: starts, faults, lost time, spikes, stragglers, rechecks.

All of it is read from the files of a run's folder: ``history.jsonl``, ``faults/``,
``skipped.json``, ``metrics.jsonl`` and ``log.txt``.
"""

import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from megalite.data.records import Record
from megalite.tools.report.table import table
from megalite.training.folder.history import StartNote, read_history
from megalite.training.folder.skips import read_skips
from megalite.training.folder.starts import IN_STEP, TIME

SAID = {  # what lines of a log that begin with a step are about
    "straggler": ("slower than the others", "as fast as the others again"),
    "recheck": ("computed again (",),
    "spike": (": a spike:", "going back before the spike", "from before the spike"),
    "dropped": ("gradients were not finite", "its update is dropped"),
    "drift": ("copies differ",),
}
OF_STEP = re.compile(r"step (\d+): (.*)")
VERDICTS = {0.0: "right", 1.0: "undecided", 2.0: "transient"}
MOST_LINES = 60  # of a run's log
LONGEST = 400  # characters of a fault
Run = tuple[str, Path, Sequence[Record]]


def fault_section(runs: Mapping[str, Path], metrics: Mapping[str, Sequence[Record]]) -> list[str]:
    """The section of the page about faults; nothing where no run met any.

    Args:
        runs: their folders by name.
        metrics: of each.
    """
    each: list[Run] = [(name, folder, metrics[name]) for name, folder in runs.items()]
    histories = {name: starts_of(folder) for name, folder, _ in each}
    costs = [_cost(name, histories[name], records) for name, _, records in each]
    starts = [row for name, notes in histories.items() for row in _starts(name, notes)]
    said = [row for run in each for row in _said(run)]
    parts: list[str] = []
    if len(starts) > sum(map(bool, histories.values())):  # more than one of some run
        heads = ("run", "began", "from step", "ended", "in step", "how")
        parts += ["<h3>Starts</h3>", table(heads, starts)]
    if said:
        parts += ["<h3>What the log says</h3>", table(("run", "step", "of", "what"), said)]
    parts += _skips(each)
    known = [row for row in costs if row]
    if not known or not (parts or any(row[2] != "0" for row in known)):
        return ["<h2>Faults</h2>", *parts] if parts else []
    columns = "run", "starts", "faults", "steps lost", "hours", "goodput", "rechecks", "dropped"
    return ["<h2>Faults</h2>", table(columns, known), *parts]


def starts_of(folder: Path) -> list[StartNote]:
    """A run's starts; what one couldn't say itself is taken from its watchdog's report."""
    starts = read_history(folder)
    for start, following in zip_longest(starts, starts[1:]):
        if start.ended_s:
            continue
        until = following.began_s if following else time.time()
        for at, text in _reports(folder, start.restart):
            if int(start.began_s) <= at <= until:
                start.ended_s, start.how = at, text
                found = IN_STEP.search(text)
                start.reached = int(found[1]) if found else 0
                break
        else:
            if following:
                start.how = "without a word: killed, perhaps for its memory"
    return starts


def _reports(folder: Path, restart: int) -> list[tuple[float, str]]:
    """Faults that the watchdog reported in torchrun's starts of a number: when, and what."""
    path = folder / "faults" / f"restart-{restart}" / "report.txt"
    found, length = [], len(time.strftime(TIME))
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            at = time.mktime(time.strptime(line[:length], TIME))
        except ValueError:
            continue  # a status of the report
        found.append((at, line[length + 1 :]))
    return found


def _cost(name: str, starts: Sequence[StartNote], records: Sequence[Record]) -> list[str]:
    """A row of what faults cost a run; empty without a history."""
    if not starts:
        return []
    faults = [start for start in starts if start.how and start.is_fault]
    pairs = zip(starts, starts[1:], strict=False)
    lost = sum(max(one.reached - 1 - after.step, 0) for one, after in pairs if one.is_fault)
    verdicts = Counter(VERDICTS.get(_number(row, "recheck", -1.0), "") for row in records)
    told = [f"{verdicts[kind]} {kind}" for kind in VERDICTS.values() if verdicts[kind]]
    whole_s = max(max(start.ended_s, start.began_s) for start in starts) - starts[0].began_s
    kept_s = sum(_number(row, "step_s") for row in records)
    is_known = bool(starts[-1].ended_s) and whole_s > 0
    dropped = max((_number(row, "dropped_steps") for row in records), default=0.0)
    return [
        name,
        str(len(starts)),
        str(len(faults)),
        str(lost),
        f"{whole_s / 3600:.3g}" if is_known else "under way",
        f"{min(kept_s / whole_s, 1.0):.1%}" if is_known else "",
        ", ".join(told) or "none",
        f"{dropped:.0f}",
    ]


def _number(row: Record, key: str, without: float = 0.0) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else without


def _starts(name: str, starts: Sequence[StartNote]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            time.strftime(TIME, time.localtime(start.began_s)),
            str(start.step),
            time.strftime(TIME, time.localtime(start.ended_s)) if start.ended_s else "",
            str(start.reached or ""),
            start.how[:LONGEST],
        )
        for start in starts
    ]


def _said(run: Run) -> list[tuple[str, ...]]:
    """What a run's log says of its steps' faults."""
    name, folder, _ = run
    path = folder / "log.txt"
    rows: list[tuple[str, ...]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        found = OF_STEP.match(line)
        for kind, words in SAID.items() if found else ():
            if found and any(word in line for word in words):
                rows.append((name, found[1], kind, found[2][:LONGEST]))
                break
    if len(rows) > MOST_LINES:
        left = f"{len(rows) - MOST_LINES} lines before are in {path}"
        rows = [(name, "", "", left), *rows[-MOST_LINES:]]
    return rows


def _skips(runs: Sequence[Run]) -> list[str]:
    """The samples that runs left out when they went back before spikes; nothing without any."""
    rows = [
        (name, str(entry["step"]), f"{entry['first']}-{entry['end'] - 1}")
        for name, folder, _ in runs
        for entry in read_skips(folder)
    ]
    heads = ("run", "spike in step", "samples left out, by the run's order")
    return ["<h3>Spikes</h3>", table(heads, rows)] if rows else []
