"""The loss scale of fp16, and what to do when gradients are not finite."""

from dataclasses import dataclass

from megalite.errors import MegaliteError

START = 2.0**16
GROWTH_STEPS = 1000
LARGEST = 2.0**24


@dataclass
class LossScale:
    """Dynamic loss scaling: halve on overflow, double after a thousand good steps.

    Attributes:
        value: what losses are multiplied by; 1 unless fp16.
        good_steps: since the last change.
        bad_steps: in a row.

    Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.2.
    """

    value: float = 1.0
    good_steps: int = 0
    bad_steps: int = 0

    @classmethod
    def of(cls, precision: str) -> "LossScale":
        """The scale a run starts with."""
        return cls(START if precision == "fp16" else 1.0)

    def update(self, is_finite: bool, precision: str, most_bad: int, step: int) -> None:
        """Take note of a step.

        Raises:
            MegaliteError: too many steps in a row were not finite; it says what to try.
        """
        if is_finite:
            self.bad_steps, self.good_steps = 0, self.good_steps + 1
            if precision == "fp16" and self.good_steps == GROWTH_STEPS:
                self.value, self.good_steps = min(self.value * 2, LARGEST), 0
            return
        self.bad_steps, self.good_steps = self.bad_steps + 1, 0
        if precision == "fp16":
            self.value = max(self.value / 2, 1.0)
        if self.bad_steps >= most_bad:
            advice = "try bf16 or fp32, " if precision == "fp16" else ""
            raise MegaliteError(
                f"step {step}: gradients were not finite for {self.bad_steps} steps in a row: "
                f"{advice}lower --optimizer.learning_rate, raise --schedule.warmup, or look for "
                "bad data near this step"
            )
