"""The best evaluation so far: its checkpoint is kept, and a run may end when none is better.

The state is in every checkpoint, so that a run which goes on decides as one that was not stopped.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megalite.errors import ConfigError

# In the names of metrics that are better when they are lower.
LOWER = ("loss", "kl", "error", "self_bleu", "rejected_reward")


@dataclass
class Best:
    """The best value of a metric of evaluations.

    Attributes:
        metric: its name; empty: none is watched.
        patience: evaluations without a better one after which the run ends; 0: it never does.
        step: of the best evaluation; 0 before the first.
        value: of the metric there.
        since: evaluations after it.
    """

    metric: str = ""
    patience: int = 0
    step: int = 0
    value: float = math.nan
    since: int = 0

    @property
    def is_over(self) -> bool:
        """Whether a run ends for lack of a better evaluation."""
        return 0 < self.patience <= self.since

    @property
    def is_new(self) -> bool:
        """Whether there is a metric that no evaluation was watched for."""
        return bool(self.metric) and not self.step and not self.since

    @property
    def is_lower_better(self) -> bool:
        """Whether the metric is a loss, or bad otherwise."""
        return any(word in self.metric.partition("/")[0] for word in LOWER)

    def of(self, metrics: Mapping[str, float]) -> float:
        """The value of the metric in those of an evaluation.

        Raises:
            ConfigError: it isn't there.
        """
        if self.metric in metrics:
            return metrics[self.metric]
        raise ConfigError(
            f"--checkpoint.best {self.metric}: must be a metric of the evaluations: "
            f"{', '.join(metrics)}"
        )

    def check(self, metrics: Mapping[str, float]) -> None:
        """Refuse metrics of an evaluation without the one that is watched; raises as :meth:`of`."""
        if self.metric:
            self.of(metrics)

    def see(self, step: int, value: float) -> bool:
        """Count an evaluation; say whether it is the best one."""
        sign = -1 if self.is_lower_better else 1
        is_better = math.isfinite(value) and (not self.step or sign * (value - self.value) > 0)
        if is_better:
            self.step, self.value, self.since = step, value, 0
        else:
            self.since += 1
        return is_better

    def facts(self) -> dict[str, Any]:
        """The state, for a manifest."""
        if not self.metric:
            return {}
        value = self.value if self.step else None
        return {"metric": self.metric, "step": self.step, "value": value, "since": self.since}

    def restore(self, facts: Mapping[str, Any]) -> None:
        """Take a manifest's state; that of another metric is none."""
        known = facts if facts.get("metric") == self.metric else {}
        self.step, self.since = known.get("step", 0), known.get("since", 0)
        self.value = known["value"] if self.step else math.nan

    def why_over(self) -> str:
        """Why a run ends before its last step, in words; empty: it doesn't."""
        if not self.is_over:
            return ""
        return f"{self.since} evaluations (train.patience) were no better than {self}"

    def where(self, folder: Path) -> str:
        """Where the best checkpoint of the run in a folder is, in words; empty without one."""
        path = folder / "checkpoints" / "best"
        return f"the best evaluation, {self}, has its checkpoint in {path}" if self.step else ""

    def __str__(self) -> str:
        return f"{self.metric} {self.value:.4g} of step {self.step}" if self.step else "none"
