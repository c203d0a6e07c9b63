"""The tables of docs/gpu.md, of the results that a run has written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = {  # of a check: its figures, in this order
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
    rows = [row for row in outcome["rows"] if "left_out" not in row]
    lines = [f"### {outcome['check']}"]
    if outcome["fault"]:
        lines.append(f"It ended badly: {outcome['fault']}.")
    given = [name for row in rows for name in row["figures"]]
    names = [n for n in COLUMNS.get(outcome["check"], tuple(dict.fromkeys(given))) if n in given]
    if rows:
        has_fault = any(row["fault"] for row in rows)
        head = ["case", *names, *(["fault"] if has_fault else [])]
        table = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in rows:
            cells = [row["case"], *(_cell(row["figures"].get(name)) for name in names)]
            table.append(f"| {' | '.join(cells + ([row['fault']] if has_fault else []))} |")
        lines.append("\n".join(table))
    lines += [f"Left out: {row['case']}: {row['left_out']}." for row in _left_out(outcome)]
    return "\n\n".join(lines)


def _left_out(outcome: dict[str, Any]) -> Results:
    return [row for row in outcome["rows"] if "left_out" in row]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value)
