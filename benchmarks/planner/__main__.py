"""The planner's step times and memory against published runs.

    python -m benchmarks.planner [--fit] [--json]

``runs.csv`` has a row a published run, with its source. Rows marked ``fit`` may set constants,
``held`` ones never do, ``mem`` ones have memory alone. ``--fit`` fits the constants of each type of
device to its fit rows and stores them in the package. Then the errors are printed by source, how
well layouts of one model are ordered, and each row that is missed by more than 20%.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone

from benchmarks.planner.fit import fitted
from benchmarks.planner.memory import memory_lines, planned_gb
from benchmarks.planner.rows import Row, families, predicted, rows
from megalite.plan.constants import STORED, Constants, constants_of, stored
from megalite.plan.search import to_take

KINDS = ("a100", "h100")
MISSED = 0.2

LACKS = {  # what a missed row has that the model lacks, the first that holds
    "a head size that is no multiple of 8: tensor cores are fed another way": lambda row: (
        (row.number("h") / row.number("heads")) % 8 != 0
    ),
    "tp over nodes: its collectives there": lambda row: row.number("tp") > 8,
    "little work a kernel: launches from the host": lambda row: (
        row.number("mbs") * row.number("s") * row.number("h") / row.number("tp") < 2**22
    ),
    "a device filled to the brim: the allocator frees and asks again": lambda row: (
        row.number("zero") == 3
        and row.number("L") * row.number("h") ** 2 * 216 / row.number("dp") > 3e9
        and row.number("gpus") <= 8
    ),
    "gathers that are hardly longer than the computing behind them": lambda row: (
        row.number("zero") == 3 and row.number("mbs") <= 2
    ),
    "why: other layouts of the same source, alike but for one number, are met": lambda row: True,
}


def error(row: Row, constants: Constants) -> float:
    """Predicted over published seconds, less 1."""
    return predicted(row, constants).total / row.seconds - 1.0


def summary(name: str, errors: Sequence[float]) -> str:
    """A line of how far off some rows are."""
    sizes = [abs(e) for e in errors]
    within = sum(size <= 0.15 for size in sizes) / len(sizes)
    return (
        f"{name:<24} {len(sizes):>4} rows  median error {statistics.median(sizes):6.1%}  "
        f"within 15%: {within:4.0%}  bias {statistics.median(errors):+6.1%}"
    )


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's: of the places of two orders."""

    def places(values: Sequence[float]) -> list[float]:
        order = sorted(values)
        return [order.index(value) + (order.count(value) - 1) / 2 for value in values]

    return statistics.correlation(places(first), places(second))


def choices(found: Sequence[Row], constants: Constants) -> list[str]:
    """Of each family: the order, and how far the layout that is taken is behind its best."""
    lines = []
    for name, group in families(found).items():
        times = [predicted(row, constants).total for row in group]
        chosen = group[to_take(times, [planned_gb(row) for row in group])]
        behind = chosen.seconds / min(row.seconds for row in group) - 1
        order = rank_correlation(times, [row.seconds for row in group])
        lines.append(
            f"{name}: {len(group)} layouts, rank correlation {order:.2f}, chosen {behind:+.1%}"
        )
    return lines


def store(kind: str, constants: Constants, count: int) -> None:
    """Write a kind's constants with the day and the number of rows."""
    date = datetime.now(timezone.utc).date().isoformat()
    values = {name: float(f"{v:.4g}") for name, v in dataclasses.asdict(constants).items()}
    known = dict(stored()) if STORED.exists() else {}
    known[kind] = {"date": date, "rows": count, **values}
    STORED.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    stored.cache_clear()


def report(kind: str, constants: Constants) -> None:
    """Print what the rows of a kind of device say."""
    for split in ("fit", "held"):
        found = [row for row in rows() if row.kind == kind and row.split == split]
        errors = {row.name: error(row, constants) for row in found}
        print(summary(f"{kind} {split}", list(errors.values())))
        for group in sorted({row.group for row in found}):
            print("  " + summary(group, [errors[r.name] for r in found if r.group == group]))
    timed = [row for row in rows() if row.kind == kind and row.seconds]
    print("\n".join(choices(timed, constants)))
    for row in timed:
        off = error(row, constants)
        if abs(off) > MISSED:
            lack = next(text for text, holds in LACKS.items() if holds(row))
            print(f"  missed {row.name} ({row.split}): {off:+.0%}; lacks {lack}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants first")
    parser.add_argument("--json", action="store_true", help="one object a row")
    options = parser.parse_args()
    for kind in KINDS:
        if options.fit:
            found = [row for row in rows() if row.kind == kind and row.split == "fit"]
            store(kind, fitted(found), len(found))
        constants = constants_of(kind)
        if not options.json:
            report(kind, constants)
            continue
        for row in rows():
            if row.kind == kind and row.seconds:
                seconds = predicted(row, constants)
                shown = {"case": row.name, "split": row.split, "published_s": row.seconds}
                print(
                    json.dumps(shown | {"predicted_s": seconds.total} | dataclasses.asdict(seconds))
                )
    if not options.json:
        print("\n".join(memory_lines()))


if __name__ == "__main__":
    main()
