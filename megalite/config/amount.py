"""Lengths and places of a run in the unit that they are told in: "2000 steps", "375M tokens", 0.01.

A number without a unit is a share of the run. What is told in another unit is settled once, where
the data is known: it is samples from then on, as the clock of a run counts those.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator

from megalite.errors import ConfigError

SHARE = "share"
UNITS = ("steps", "samples", "tokens", "epochs")
FORMS = "a share of the run such as 0.01, or a number of steps, samples, tokens or epochs"
EXAMPLE = "'2000 steps', '375M tokens'"
_FORM = re.compile(
    r"(\d+(?:_\d+)*(?:\.\d+)?(?:e-?\d+)?)\s*([KMBT](?!oken)|)\s*(%|[a-z]*)", re.IGNORECASE
)
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def read_number(text: str) -> int | None:
    """A whole number that may have K, M, B or T behind it; None where it is none."""
    found = _FORM.fullmatch(text)
    return None if found is None or found[3] else round(Decimal(found[1]) * _factor(found[2]))


def _factor(letter: str) -> int:
    return _FACTORS[letter.upper()]


@dataclass(frozen=True)
class Amount:
    """A length, or a place counted from the beginning.

    Attributes:
        number: of units, or the share.
        unit: ``share`` or one of ``UNITS``.
    """

    number: Decimal
    unit: str

    @classmethod
    def read(cls, told: float | str) -> "Amount":
        """What a config says.

        Raises:
            ValueError: it can't be read; the sentence says what can.
        """
        found = _FORM.fullmatch(str(told).strip())
        if found is None:
            raise ValueError(f"{told!r}: must be {FORMS} ({EXAMPLE})")
        number, unit = Decimal(found[1]) * _factor(found[2]), found[3].lower()
        if unit in ("", "%") and not found[2]:
            number = number / 100 if unit else number
            if number > 1:
                unit_text = "write the unit, as in '2000 steps'"
                raise ValueError(f"{told!r}: a share of the run is at most 1: {unit_text}")
            return cls(number, SHARE)
        named = next((one for one in UNITS if unit in (one, one[:-1])), None)
        if named is None:
            raise ValueError(f"{told!r}: must be {FORMS} ({EXAMPLE})")
        return cls(number, named)


def _checked(told: float | str) -> float | str:
    amount = Amount.read(told)
    return float(amount.number) if amount.unit == SHARE else str(told).strip()


Length = Annotated[float | str, AfterValidator(_checked)]


@dataclass(frozen=True)
class Measure:
    """What the units of a run are in samples.

    Attributes:
        after_steps: the samples of so many first steps.
        tokens: of a sample; 0: samples have different lengths, or none.
        epoch: samples of a pass over the data; 0: not known.
        stage: named where it has no such unit.
    """

    after_steps: Callable[[int], int]
    tokens: int = 0
    epoch: int = 0
    stage: str = ""

    def samples(self, amount: Amount, key: str) -> int:
        """An amount that is no share, in whole samples.

        Raises:
            ConfigError: the stage has no such unit; it names ``key``.
        """
        if amount.unit == "steps":
            return self.after_steps(round(amount.number))
        if amount.unit == "samples":
            return round(amount.number)
        if amount.unit == "epochs":
            if not self.epoch:
                raise ConfigError(f"--{key}: epochs can't be counted without data: give samples")
            return round(amount.number * self.epoch)
        if not self.tokens:
            raise ConfigError(
                f"--{key}: tokens are a unit of pretraining; samples of {self.stage} have "
                "different lengths: give steps, samples, epochs or a share"
            )
        return round(amount.number / self.tokens)

    def settled(self, told: float | str, key: str) -> float | str:
        """A share as it is, anything else as ``N samples``."""
        amount = Amount.read(told)
        if amount.unit == SHARE:
            return told
        return f"{self.samples(amount, key)} samples"


def share_of(told: float | str, total: int) -> float:
    """A settled length as a share of ``total`` samples; it may be above 1."""
    if isinstance(told, float | int):
        return told
    return in_samples(told, total) / max(total, 1)


def in_samples(told: float | str, total: int) -> int:
    """A settled length in samples; a share of ``total`` is rounded, a whole number is samples."""
    if isinstance(told, int):
        return told
    amount = Amount.read(told)
    assert amount.unit in (SHARE, "samples"), told
    return round(amount.number * total if amount.unit == SHARE else amount.number)
