"""The loss scale of fp16, and what to do when gradients are not finite."""

from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.errors import MegaliteError

START = 2.0**16
GROWTH_STEPS = 1000
LARGEST, LEAST = 2.0**24, 1.0
MEMORY_STEPS = 100
LARGEST_BAD_SHARE = 0.25  # a new scale costs at most 16 halvings, then a step in a thousand


@dataclass
class LossScale:
    """Dynamic loss scaling: halve on overflow, double after a thousand good steps.

    Attributes:
        value: what losses are multiplied by; 1 unless fp16.
        good_steps: since the last change.
        bad_steps: in a row.
        bad_share: of the last steps, about ``MEMORY_STEPS`` of them.
        dropped_steps: without finite gradients, of all.

    Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.2.
    """

    value: float = 1.0
    good_steps: int = 0
    bad_steps: int = 0
    bad_share: float = 0.0
    dropped_steps: int = 0

    @classmethod
    def of(cls, precision: str) -> "LossScale":
        """The scale that a run starts with."""
        return cls(START if precision == "fp16" else 1.0)

    def update(self, is_finite: bool, precision: str, most_bad: int, step: int) -> None:
        """Change the scale after a step.

        Args:
            is_finite: whether the step's gradients were.
            precision: of compute; only fp16 has a scale.
            most_bad: steps in a row without finite gradients that end the run.
            step: number of the step, for the message.

        Raises:
            MegaliteError: too many steps were not finite, or one at the least scale; it says what
                to try.
        """
        self.bad_share += ((not is_finite) - self.bad_share) / MEMORY_STEPS
        if is_finite:
            self.bad_steps, self.good_steps = 0, self.good_steps + 1
            if precision == "fp16" and self.good_steps == GROWTH_STEPS:
                self.value, self.good_steps = min(self.value * 2, LARGEST), 0
            return
        self.bad_steps, self.good_steps = self.bad_steps + 1, 0
        self.dropped_steps += 1
        if precision == "fp16" and self.value == LEAST:
            raise MegaliteError(
                f"step {step}: gradients were not finite at a loss scale of {LEAST:g}, the least: "
                f"a smaller one would lose the small ones: {_advice(precision)}"
            )
        if precision == "fp16":
            self.value = max(self.value / 2, LEAST)
        if self.bad_steps >= most_bad:
            raise MegaliteError(
                f"step {step}: gradients were not finite for {self.bad_steps} steps in a row: "
                f"{_advice(precision)}"
            )
        if self.bad_share > LARGEST_BAD_SHARE:
            raise MegaliteError(
                f"step {step}: gradients were not finite in {self.bad_share:.0%} of the last "
                f"{MEMORY_STEPS} steps: {_advice(precision)}"
            )

    def facts(self) -> dict[str, float]:
        """Its state, for a checkpoint."""
        return {"loss_scale": self.value} | {
            name: getattr(self, name)
            for name in ("good_steps", "bad_steps", "bad_share", "dropped_steps")
        }

    def restore(self, facts: dict[str, float]) -> None:
        """Take :meth:`facts` back."""
        self.value = facts["loss_scale"]
        self.good_steps, self.bad_steps = int(facts["good_steps"]), int(facts["bad_steps"])
        self.bad_share = facts["bad_share"]
        self.dropped_steps = int(facts.get("dropped_steps", 0))  # older checkpoints have none


@dataclass(frozen=True)
class ScaleAhead:
    """The scale of a step as the device knows it, before the host has read the steps before.

    Attributes:
        value: fp32 scalar.
        good_steps: since the last change, fp32 scalar.
    """

    value: Tensor
    good_steps: Tensor

    @classmethod
    def of(cls, scale: LossScale, device: torch.device) -> "ScaleAhead":
        """What the host knows, on the device."""
        value, good = (torch.full((), x, device=device) for x in (scale.value, scale.good_steps))
        return cls(value.float(), good.float())

    def after(self, bad: Tensor) -> "ScaleAhead":
        """As :meth:`LossScale.update` changes it under fp16; ``bad`` is not 0 after a bad step."""
        is_bad, good = bad > 0, self.good_steps + 1.0
        is_due = good == GROWTH_STEPS
        grown = torch.where(is_due, (self.value * 2.0).clamp(max=LARGEST), self.value)
        value = torch.where(is_bad, (self.value / 2.0).clamp(min=LEAST), grown)
        return ScaleAhead(value, torch.where(is_bad | is_due, 0.0, good))


def _advice(precision: str) -> str:
    other = "try bf16 or fp32, " if precision == "fp16" else ""
    return (
        f"{other}lower --optimizer.learning_rate, raise --schedule.warmup, go back to an earlier "
        "checkpoint, or look for bad data near this step"
    )
