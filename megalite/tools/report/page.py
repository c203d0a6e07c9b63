"""One HTML page about runs: their curves over each other, and their samples side by side."""

import html
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from megalite.config import Section
from megalite.data.records import Record, json_records
from megalite.distributed.launch import Launch
from megalite.errors import DataError, naming
from megalite.tools.report.alignment import alignment_section
from megalite.tools.report.chart import DASHES, Line, line_chart
from megalite.tools.report.faults import fault_section
from megalite.tools.report.first_steps import first_step_section
from megalite.tools.report.rankings import ranking_section
from megalite.tools.report.series import series
from megalite.tools.report.style import STYLE, hiding, switches
from megalite.tools.report.table import table


@dataclass(frozen=True)
class Chart:
    """What a chart draws: metrics of one unit, of all runs that have them.

    Attributes:
        title: written above it.
        unit: of all its metrics.
        keys: of metrics.jsonl; those of held-out sets with names (``key/name``) come along.
        only: a run is drawn if it has this metric too; empty: any run.
        never: a run that has one of these metrics is not drawn.
    """

    title: str
    unit: str
    keys: tuple[str, ...]
    only: str = ""
    never: tuple[str, ...] = ()


OTHER_LOSSES = ("ranking_loss", "policy_loss", "margin")  # of runs whose loss is no text's
CHARTS = {
    "Learning": (
        Chart("Loss", "nats per target", ("loss",), never=OTHER_LOSSES),
        Chart("Held-out loss", "nats per target", ("heldout_loss",), never=OTHER_LOSSES),
        Chart("Ranking loss", "nats per pair", ("ranking_loss",)),
        Chart("Ranking accuracy, held out", "share of pairs", ("heldout_accuracy",)),
        Chart("Calibration error, held out", "share of pairs", ("heldout_calibration_error",)),
        Chart("Preference loss", "per pair", ("loss", "heldout_loss"), only="margin"),
        Chart("Margin of better answers", "reward", ("margin", "heldout_margin")),
        Chart("Better and worse answers", "reward", ("chosen_reward", "rejected_reward")),
    ),
    "Reinforcement learning": (
        Chart("Reward", "score per response", ("reward", "heldout_reward")),
        Chart("KL to reference", "nats per response", ("kl", "heldout_kl")),
        Chart("Policy loss", "per token", ("policy_loss",)),
        Chart("Value loss", "squared score", ("value_loss",)),
        Chart("Clipped updates", "share of tokens", ("clip_fraction", "value_clip_fraction")),
        Chart("Entropy", "nats per token", ("entropy", "heldout_entropy")),
        Chart("Response length", "tokens", ("response_tokens", "heldout_response_tokens")),
        Chart("Answers with an end", "share", ("ended", "heldout_ended")),
        Chart(
            "Different runs of 1, 2 and 3 tokens, held out",
            "share of all runs",
            ("heldout_distinct_1", "heldout_distinct_2", "heldout_distinct_3"),
        ),
        Chart("Self-BLEU of answers to a prompt, held out", "BLEU", ("heldout_self_bleu",)),
        Chart("Groups of equal scores", "share", ("equal_groups",)),
        Chart("Deviation of scores in a group", "score per response", ("score_deviation",)),
    ),
    "The step": (
        Chart("Gradient norm", "norm", ("grad_norm", "critic_grad_norm")),
        Chart("Learning rate", "rate", ("learning_rate",)),
        Chart("Throughput", "tokens/s", ("tokens_per_s",)),
        Chart("Operations in use", "share of the peak", ("mfu", "hfu")),
        Chart("Pipeline bubble", "share of a step", ("bubble", "bubble_theory", "rollout_bubble")),
        Chart("Memory", "GiB", ("memory_gib",)),
        Chart("A process's own time for a step", "s", ("own_s", "slowest_own_s")),
    ),
}
SUMMED = ("Learning", "Reinforcement learning")  # groups of which the table tells


class ReportConfig(Section):
    """Which runs a report covers."""

    runs: tuple[str, ...] = Field(
        min_length=1, description="folders of runs, in the order of the report"
    )
    output: str = Field("report.html", min_length=1, description="new HTML page")
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
    parts = [
        f"<h1>{html.escape(config.title)}</h1>",
        switches([html.escape(name) for name in metrics]),
        *_empty(metrics),
        *alignment_section(metrics),
        *_charts(metrics),
        *ranking_section(runs),
        *fault_section(runs, metrics),
        *first_step_section(runs),
    ]
    parts += ["<h2>Samples</h2>", _sample_table(samples)] if samples else []
    parts += _summary(metrics)
    title, body = html.escape(config.title), "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{title}</title><style>{STYLE}'
        f"{hiding(len(metrics))}\n</style>\n{body}\n</html>\n"
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


def lines_of(chart: Chart, metrics: Mapping[str, list[Record]]) -> list[Line]:
    """What a chart draws of runs' metrics, a line for each run and metric."""
    lines: list[Line] = []
    dashes: list[str] = []
    for number, (name, records) in enumerate(metrics.items()):
        known = {key for record in records for key in record}
        if (chart.only and chart.only not in known) or known & set(chart.never):
            continue
        for key in sorted(key for key in known if key.partition("/")[0] in chart.keys):
            if points := series(records, key):
                dashes += [key] if key not in dashes else []
                lines.append(Line(f"{name}: {key}", points, number, dashes.index(key)))
    return lines


def _charts(metrics: dict[str, list[Record]]) -> list[str]:
    parts = []
    for group, charts in CHARTS.items():
        drawn = [(chart, lines_of(chart, metrics)) for chart in charts]
        figures = [_figure(chart, lines) for chart, lines in drawn if lines]
        if figures:
            parts += [f"<h2>{group}</h2>", '<div class="charts">', *figures, "</div>"]
    return parts


def _figure(chart: Chart, lines: list[Line]) -> str:
    """A chart; where it draws several metrics its title says which dashes are whose."""
    keys = dict(sorted({line.dash: line.name.rpartition(": ")[2] for line in lines}.items()))
    figure = line_chart(chart.title, chart.unit, lines)
    if len(keys) == 1:
        return figure
    key = "".join(
        f' <span class="key"><svg viewBox="0 0 24 8" class="both" style="display: inline; width: '
        f'24px"><line x1="0" x2="24" y1="4" y2="4" style="stroke: currentColor" '
        f'stroke-dasharray="{DASHES[dash % len(DASHES)]}"/></svg> {html.escape(name)}</span>'
        for dash, name in keys.items()
    )
    return figure.replace("</figcaption>", f"{key}</figcaption>", 1)


def _empty(metrics: dict[str, list[Record]]) -> list[str]:
    return [
        f"<p>{html.escape(name)} has no metrics yet: it has not ended a step.</p>"
        for name, records in metrics.items()
        if not any(isinstance(value, (int, float)) for row in records for value in row.values())
    ]


def _summary(metrics: dict[str, list[Record]]) -> list[str]:
    """The first and last value of each run's main metrics."""
    rows = []
    for group in SUMMED:
        for chart in CHARTS[group]:
            for line in lines_of(chart, metrics):
                run, _, key = line.name.rpartition(": ")
                first, last = line.points[0][1], line.points[-1][1]
                rows.append((run, key, f"{first:.4g}", f"{last:.4g}"))
    rows.sort(key=lambda row: list(metrics).index(row[0]))
    if not rows:
        return []
    return ["<h2>First and last values</h2>", table(("run", "metric", "first", "last"), rows)]


def _sample_table(samples: dict[str, list[Record]]) -> str:
    """The last answer of each run to each prompt, one line per prompt."""
    answers: dict[str, dict[str, str]] = {}
    for name, records in samples.items():
        for record in records:
            by_run = answers.setdefault(str(record.get("prompt", "")), {})
            by_run[name] = str(record.get("answer", ""))
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in ("prompt", *samples))
    lines = [f'<div class="scroll"><table class="samples"><tr>{heads}</tr>']
    for prompt, by_run in answers.items():
        texts = {"prompt": prompt} | {name: by_run.get(name, "") for name in samples}
        cells = "".join(
            f'<td data-of="{html.escape(name)}"><pre>{html.escape(text)}</pre></td>'
            for name, text in texts.items()
        )
        lines.append(f"<tr>{cells}</tr>")
    return "\n".join([*lines, "</table></div>"])
