"""How answers moved from where reinforcement learning, or DPO, began: a table and a sentence a run.

What is told is measured on held-out prompts, before the first step and at the last evaluation.
"""

import html
from collections.abc import Mapping, Sequence

from megalite.data.records import Record
from megalite.tools.report.series import series
from megalite.tools.report.table import table

KL = "heldout_kl"  # of runs whose answers are measured
REWARD, DEVIATION, ENTROPY = "heldout_reward", "heldout_reward_deviation", "heldout_entropy"
MEASURES = {  # of metrics.jsonl: what stands above them
    REWARD: "reward",
    KL: "KL, nats an answer",
    ENTROPY: "entropy, nats a token",
    "heldout_response_tokens": "tokens",
    "heldout_ended": "cut answers",
    "heldout_distinct_1": "distinct-1",
    "heldout_distinct_2": "distinct-2",
    "heldout_distinct_3": "distinct-3",
    "heldout_self_bleu": "self-BLEU",
}
SHARES_OF_OTHERS = ("heldout_ended",)  # measures that are shown as what they leave
SAID = {  # of the sentence: what rises or falls by a share
    ENTROPY: "entropy",
    "heldout_response_tokens": "length",
    "heldout_distinct_2": "distinct-2",
    "heldout_self_bleu": "self-BLEU",
}
Ends = tuple[float, float]  # a measure before the first step, and at the end


def alignment_section(metrics: Mapping[str, Sequence[Record]]) -> list[str]:
    """The section of the page about aligned models; nothing where no run measured answers."""
    runs = {name: ends_of(records) for name, records in metrics.items()}
    runs = {name: ends for name, ends in runs.items() if KL in ends}
    if not runs:
        return []
    shown = [key for key in MEASURES if any(key in ends for ends in runs.values())]
    heads = ("run", *(MEASURES[key] for key in shown))
    rows = [
        (name, *(_cell(key, ends[key]) if key in ends else "" for key in shown))
        for name, ends in runs.items()
    ]
    sentences = [f"<li>{html.escape(sentence(name, ends))}</li>" for name, ends in runs.items()]
    return [
        "<h2>From the start on</h2>",
        "<p>Answers to held-out prompts before the first step, and at the last evaluation.</p>",
        table(heads, rows),
        "<ul>",
        *sentences,
        "</ul>",
    ]


def ends_of(records: Sequence[Record]) -> dict[str, Ends]:
    """Each measure of a run before its first step and at its last evaluation."""
    found: dict[str, Ends] = {}
    for key in (*MEASURES, DEVIATION):
        values = series(records, key)
        if values and values[0][0] == 0:
            found[key] = values[0][1], values[-1][1]
    return found


def sentence(name: str, ends: Mapping[str, Ends]) -> str:
    """What became of a run's answers, in words."""
    parts = []
    if REWARD in ends:
        first, last = ends[REWARD]
        spread = ends.get(DEVIATION, (0.0, 0.0))[0]
        deviations = f" ({(last - first) / spread:+.2g} deviations)" if spread else ""
        parts.append(f"reward {last - first:+.3g}{deviations}")
    parts.append(f"KL {ends[KL][1]:.3g} nats an answer")
    for key, word in SAID.items():
        first, last = ends.get(key, (0.0, 0.0))
        if first:
            parts.append(f"{word} {(last - first) / first:+.0%}")
    return f"{name}: {', '.join(parts)}"


def _cell(key: str, ends: Ends) -> str:
    first, last = (1 - value if key in SHARES_OF_OTHERS else value for value in ends)
    return f"{_number(first)} → {_number(last)}"


def _number(value: float) -> str:
    """Three digits; what is rounding alone is 0."""
    return f"{round(value, 4) + 0.0:.3g}"
