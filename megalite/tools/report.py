"""One HTML page of what runs did: curves of each, and their samples side by side."""

import html
import json
from pathlib import Path
from typing import Any

from pydantic import Field

from megalite.config import Section
from megalite.distributed.launch import Launch
from megalite.errors import DataError
from megalite.tools.chart import line_chart

CHARTS = {  # title: (unit, keys of metrics.jsonl drawn in it)
    "Loss": ("nats a target", ("loss",)),
    "Held-out loss": ("nats a target", ("heldout_loss",)),
    "Ranking accuracy, held out": ("share of pairs", ("heldout_accuracy",)),
    "Reward": ("score a response", ("reward", "heldout_reward")),
    "KL to reference": ("nats a response", ("kl", "heldout_kl")),
    "Entropy": ("nats a token", ("entropy",)),
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

    runs: tuple[str, ...] = Field(description="Folders of runs, in the order of the report.")
    output: str = Field("report.html", description="The page that is written.")
    title: str = Field("megalite", description="Heading of the page.")


def run(config: ReportConfig, launch: Launch) -> int:
    """Write the report; only rank 0 does."""
    if launch.rank == 0:
        Path(config.output).write_text(page(config), encoding="utf-8")
    return 0


def page(config: ReportConfig) -> str:
    """The whole page as text.

    Raises:
        DataError: a run's folder has no metrics, or a line is not JSON.
    """
    runs = {Path(folder).name: Path(folder) for folder in config.runs}
    metrics = {name: read_rows(folder / "metrics.jsonl") for name, folder in runs.items()}
    samples = {
        name: read_rows(folder / "samples.jsonl")
        for name, folder in runs.items()
        if (folder / "samples.jsonl").exists()
    }
    parts = [f"<h1>{html.escape(config.title)}</h1>", _summary(metrics)]
    for name, rows in metrics.items():
        parts += [f"<h2>{html.escape(name)}</h2>", *_charts(rows)]
    parts += ["<h2>Samples</h2>", _sample_table(samples)] if samples else []
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>'
        f"{html.escape(config.title)}</title><style>{STYLE}</style>\n{body}\n</html>\n"
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line.

    Raises:
        DataError: the file is missing, or a line is not a JSON object; names the line.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; give the folder of a run")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg}") from None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def series(rows: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """The (step, value) points of one metric."""
    return [
        (float(row["step"]), float(row[key]))
        for row in rows
        if "step" in row and isinstance(row.get(key), (int, float))
    ]


def _charts(rows: list[dict[str, Any]]) -> list[str]:
    charts = []
    for title, (unit, keys) in CHARTS.items():
        drawn = {key: points for key in keys if (points := series(rows, key))}
        if drawn:
            charts.append(line_chart(title, unit, drawn))
    return charts


def _summary(metrics: dict[str, list[dict[str, Any]]]) -> str:
    """First and last value of each run's main metrics."""
    lines = ["<table><tr><th>run</th><th>metric</th><th>first</th><th>last</th></tr>"]
    for name, rows in metrics.items():
        for _, keys in list(CHARTS.values())[:5]:
            for key in keys:
                points = series(rows, key)
                if points:
                    cells = (name, key, f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}")
                    inner = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
                    lines.append(f"<tr>{inner}</tr>")
    return "\n".join([*lines, "</table>"])


def _sample_table(samples: dict[str, list[dict[str, Any]]]) -> str:
    """The last answer of each run to each prompt, a prompt a line."""
    answers: dict[str, dict[str, str]] = {}
    for name, rows in samples.items():
        for row in rows:
            answers.setdefault(str(row.get("prompt", "")), {})[name] = str(row.get("answer", ""))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", *samples))
    lines = [f"<table><tr>{heads}</tr>"]
    for prompt, by_run in answers.items():
        texts = (prompt, *(by_run.get(name, "") for name in samples))
        cells = "".join(f"<td><pre>{html.escape(text)}</pre></td>" for text in texts)
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table>"])
