"""The published curves, written again from the table of values alone, in plain arithmetic."""

import csv
import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "recipes.csv"
LETTERS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def table() -> dict[str, dict[str, str]]:
    """Each recipe's values, as text."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    with TABLE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            assert row["key"] not in found[row["system"]], row
            assert row["source"].strip(), row
            found[row["system"]][row["key"]] = row["value"]
    return found


def number(text: str) -> float:
    """300B, 2000."""
    text = text.replace("_", "")
    return float(text[:-1]) * LETTERS[text[-1]] if text[-1] in LETTERS else float(text)


class Published:
    """What a system's paper says of a step, given the values of the table."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values
        self.length = int(values["data.sequence_length"])
        self.batch = int(values["train.global_batch_size"])

    def value(self, key: str, default: str = "") -> str:
        return self._values.get(key, default)

    def samples(self, told: str) -> float:
        """An amount with its unit, in samples."""
        count, unit = told.split()
        count = number(count)
        if unit == "steps":
            return sum(self.batch_at(0, step) for step in range(int(count)))
        return count / self.length if unit == "tokens" else count

    def total(self) -> float:
        """Samples of the run."""
        if told := self.value("train.samples"):
            return number(told)
        if told := self.value("train.tokens"):
            return number(told) / self.length
        steps = int(self.value("train.steps"))
        return float(sum(self.batch_at(0, step) for step in range(steps)))

    def batch_at(self, samples: float, step: int = 0) -> int:
        """Samples of a step: after so many samples, or PaLM's by the number of the step."""
        if self.value("train.batch_ramp.sizes"):
            return 512 if step < 50_000 else 1024 if step < 115_000 else 2048
        start = int(self.value("train.batch_ramp.start", "0"))
        if not start:
            return self.batch
        grow = int(self.value("train.batch_ramp.increment"))
        over = self.samples(self.value("train.batch_ramp.over"))
        parts = (self.batch - start) // grow
        return start + grow * min(int(samples * parts / over), parts)

    def rate(self, samples: float) -> float:
        """The learning rate of the step after so many samples."""
        peak, kind = float(self.value("optimizer.learning_rate")), self.value("schedule.kind")
        warmup = self.samples(self.value("schedule.warmup"))
        if kind == "inverse_sqrt":  # constant until the warm-up's end in T5 and PaLM
            return peak * math.sqrt(warmup / max(samples, warmup))
        if samples < warmup:
            return peak * samples / warmup
        end = self.samples(told) if (told := self.value("schedule.end")) else self.total()
        low = peak * float(self.value("schedule.floor"))
        done = min((samples - warmup) / (end - warmup), 1.0)
        if kind == "cosine":
            return low + (peak - low) * 0.5 * (1 + math.cos(math.pi * done))
        assert kind == "linear"
        return peak - (peak - low) * done
