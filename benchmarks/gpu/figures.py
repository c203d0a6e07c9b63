"""The tables of docs/gpu.md, of the results that a run has written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = {  # of a check whose results have different figures: those in one table, in this order
    "attention speed": ("forward_ms", "backward_ms", "both_tflops", "ours_is_faster", "extra_mib"),
    "rows speed": ("ms", "gb_per_s", "tflops", "ours_is_faster"),
}
MACHINE = "this machine"  # the case that says what it is
Results = list[dict[str, Any]]


def markdown(files: Sequence[Path]) -> str:
    """What the results of one machine say, as a section.

    Raises:
        SystemExit: the files are of several machines.
    """
    results = [outcome for file in files for outcome in json.loads(file.read_text())]
    machines = [row["figures"] for outcome in results for row in outcome["rows"] if _is_card(row)]
    if len({facts["card"] for facts in machines}) != 1:
        raise SystemExit("benchmarks.gpu: --figures takes the results of one card at a time")
    about = ", ".join(f"{name} {_cell(value)}" for name, value in machines[0].items())
    sections = [_section(outcome) for outcome in results if outcome["check"] != "import"]
    return "\n\n".join([f"## {machines[0]['card']}", about, *sections]) + "\n"


def _is_card(row: dict[str, Any]) -> bool:
    return row["case"] == MACHINE and bool(row.get("figures"))


def _section(outcome: dict[str, Any]) -> str:
    """A check: a table for each kind of figures that its results have, then what was left out."""
    lines = [f"### {outcome['check']}"]
    if outcome["fault"]:
        lines.append(f"It ended badly: {outcome['fault']}.")
    tables: dict[tuple[str, ...], Results] = {}
    for row in outcome["rows"]:
        if "left_out" not in row:
            tables.setdefault(_columns(outcome["check"], row["figures"]), []).append(row)
    lines += [_table(names, rows) for names, rows in tables.items()]
    left_out = [row for row in outcome["rows"] if "left_out" in row]
    lines += [f"Left out: {row['case']}: {row['left_out']}." for row in left_out]
    return "\n\n".join(lines)


def _columns(check: str, figures: dict[str, Any]) -> tuple[str, ...]:
    """The figures that a result is told by."""
    usual = COLUMNS.get(check, ())
    return usual if any(name in figures for name in usual) else tuple(figures)


def _table(names: tuple[str, ...], rows: Results) -> str:
    has_fault = any(row["fault"] for row in rows)
    names = tuple(name for name in names if any(name in row["figures"] for row in rows))
    head = ["case", *names, *(["fault"] if has_fault else [])]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["case"], *(_cell(row["figures"].get(name)) for name in names)]
        lines.append(f"| {' | '.join(cells + ([row['fault']] if has_fault else []))} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
