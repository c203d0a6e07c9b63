"""One HTML page about runs: the curves of each, and their samples side by side."""

import html
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from megalite.config import Section
from megalite.data.records import Record, json_records
from megalite.distributed.launch import Launch
from megalite.errors import DataError, naming
from megalite.tools.report.chart import line_chart
from megalite.training.folder.skips import read_skips

CHARTS = {  # title: (unit, keys of metrics.jsonl drawn in it)
    "Loss": ("nats per target", ("loss",)),
    "Held-out loss": ("nats per target", ("heldout_loss",)),
    "Ranking accuracy, held out": ("share of pairs", ("heldout_accuracy",)),
    "Reward": ("score per response", ("reward", "heldout_reward")),
    "KL to reference": ("nats per response", ("kl", "heldout_kl")),
    "Margin of better answers": ("reward", ("margin", "heldout_margin")),
    "Rewards of better and worse answers": ("reward", ("chosen_reward", "rejected_reward")),
    "Entropy": ("nats per token", ("entropy",)),
    "Clipped updates": ("share of tokens", ("clip_fraction",)),
    "Value loss": ("squared score", ("value_loss",)),
    "Response length": ("tokens", ("response_tokens",)),
    "Gradient norm": ("", ("grad_norm",)),
    "Learning rate": ("", ("learning_rate",)),
    "Throughput": ("tokens/s", ("tokens_per_s",)),
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1340px; margin: 2em auto; color: #222 }
svg { margin: 4px; border: 1px solid #ddd; font-size: 11px }
.title { font-weight: 600; font-size: 13px } .grid { stroke: #e4e4e4 }
table { border-collapse: collapse } pre { margin: 0; white-space: pre-wrap }
td, th { border: 1px solid #ddd; padding: 4px 8px; text-align: left; vertical-align: top }
"""


class ReportConfig(Section):
    """Which runs a report covers."""

    runs: tuple[str, ...] = Field(description="folders of runs, in the order of the report")
    output: str = Field("report.html", description="new HTML page")
    title: str = Field("megalite", description="heading of the page")


def run(config: ReportConfig, launch: Launch) -> int:
    """Write the report; only rank 0 does."""
    if launch.rank == 0:
        text, output = page(config), Path(config.output)
        with naming(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(text, encoding="utf-8")
    return 0


def page(config: ReportConfig) -> str:
    """The whole page as text.

    Raises:
        DataError: a run's folder has no metrics, or a line is not JSON.
    """
    runs = names_of([Path(folder) for folder in config.runs])
    metrics = {name: read_jsonl(folder / "metrics.jsonl") for name, folder in runs.items()}
    samples = {
        name: read_jsonl(folder / "samples.jsonl")
        for name, folder in runs.items()
        if (folder / "samples.jsonl").exists()
    }
    parts = [f"<h1>{html.escape(config.title)}</h1>", _summary(metrics)]
    for name, records in metrics.items():
        parts += [f"<h2>{html.escape(name)}</h2>", *_charts(records), *_skips(runs[name])]
    parts += ["<h2>Samples</h2>", _sample_table(samples)] if samples else []
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
        f"{html.escape(config.title)}</title><style>{STYLE}</style>\n{body}\n</html>\n"
    )


def names_of(folders: Sequence[Path]) -> dict[str, Path]:
    """Each folder by the shortest end of its path that no other has; one given twice is one."""
    paths = {Path(os.path.abspath(folder)): folder for folder in folders}
    named = {}
    for path, folder in paths.items():
        others = [other.parts for other in paths if other != path]
        length = next(
            n
            for n in range(1, len(path.parts) + 1)
            if all(path.parts[-n:] != other[-n:] for other in others)
        )
        named[str(Path(*path.parts[-length:]))] = folder
    return named


def read_jsonl(path: Path) -> list[Record]:
    """Read one of a run's JSONL files.

    Raises:
        DataError: the file is missing, or a line is not a JSON object; names the line.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; give the folder of a run")
    return [record for _, record in json_records(path)]


def series(records: list[Record], key: str) -> list[tuple[float, float]]:
    """The (step, value) points of one metric."""
    return [
        (float(record["step"]), float(record[key]))
        for record in records
        if "step" in record and isinstance(record.get(key), (int, float))
    ]


def _charts(records: list[Record]) -> list[str]:
    charts = []
    for title, (unit, keys) in CHARTS.items():
        sets = {key for record in records for key in record if key.partition("/")[0] in keys}
        named = (*keys, *sorted(sets - set(keys)))  # metrics of held-out sets with names
        drawn = {key: points for key in named if (points := series(records, key))}
        if drawn:
            charts.append(line_chart(title, unit, drawn))
    return charts


def _skips(folder: Path) -> list[str]:
    """The samples that a run left out when it went back before spikes; nothing without any."""
    entries = read_skips(folder)
    lines = ["<table><tr><th>spike in step</th><th>samples left out, by the run's order</th></tr>"]
    for entry in entries:
        cells = f"<td>{entry['step']}</td><td>{entry['first']}-{entry['end'] - 1}</td>"
        lines.append(f"<tr>{cells}</tr>")
    return [*lines, "</table>"] if entries else []


def _summary(metrics: dict[str, list[Record]]) -> str:
    """The first and last value of each run's main metrics."""
    lines = ["<table><tr><th>run</th><th>metric</th><th>first</th><th>last</th></tr>"]
    for name, records in metrics.items():
        for _, keys in list(CHARTS.values())[:6]:
            for key in keys:
                points = series(records, key)
                if points:
                    cells = (name, key, f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}")
                    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
                    lines.append(f"<tr>{inner}</tr>")
    return "\n".join([*lines, "</table>"])


def _sample_table(samples: dict[str, list[Record]]) -> str:
    """The last answer of each run to each prompt, one line per prompt."""
    answers: dict[str, dict[str, str]] = {}
    for name, records in samples.items():
        for record in records:
            by_run = answers.setdefault(str(record.get("prompt", "")), {})
            by_run[name] = str(record.get("answer", ""))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", *samples))
    lines = [f"<table><tr>{heads}</tr>"]
    for prompt, by_run in answers.items():
        texts = (prompt, *(by_run.get(name, "") for name in samples))
        cells = "".join(f"<td><pre>{html.escape(text)}</pre></td>" for text in texts)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])
