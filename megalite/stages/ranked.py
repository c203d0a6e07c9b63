"""How well a reward model ranks held-out answers, and how far its scores can be believed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Borders of the differences that pairs are told apart by, in units of score or of margin.
BORDERS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
COUNTS = ("pairs", "right", "said")  # of a stretch: pairs, those ranked right, probabilities
LENGTHS = {"longer": 1, "shorter": -1, "equal": 0}  # the better answer is: sign of its difference
Sums = Mapping[str, float]


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers to one prompt, better minus worse.

    Attributes:
        scores: fp32 [P], by how much the better one scores more.
        tokens: int64 [P], by how much it is longer.
        margins: fp32 [P], by how much it is better, as the records say; None: they don't.
    """

    scores: Tensor
    tokens: Tensor
    margins: Tensor | None = None

    def sums(self) -> dict[str, Tensor]:
        """Counts over the pairs, the same names for any of them: scalars that add up."""
        right = self.scores > 0
        said = self.scores.abs().double().sigmoid()
        sums = _by_stretch("score", self.scores.abs(), right, said)
        margins = self.scores[:0] if self.margins is None else self.margins
        told = len(margins)  # all, or none
        sums |= _by_stretch("margin", margins, right[:told], said[:told])
        sign = self.tokens.sign()
        for name, value in LENGTHS.items():
            sums[f"{name}/pairs"] = (sign == value).sum()
            sums[f"{name}/right"] = ((sign == value) & right).sum()
        longer_first = right == (self.tokens > 0)
        sums["longer_first"] = (longer_first & (self.tokens != 0)).sum()
        return sums


def _by_stretch(of: str, values: Tensor, right: Tensor, said: Tensor) -> dict[str, Tensor]:
    borders = torch.tensor(BORDERS[1:], device=values.device)
    place = torch.bucketize(values, borders, right=True)
    sums = {}
    for number in range(len(BORDERS)):
        here = place == number
        counted = (here, here & right, here * said)
        for name, value in zip(COUNTS, counted, strict=True):
            sums[f"{of}/{number}/{name}"] = value.sum()
    return sums


def metrics_of(sums: Sums) -> dict[str, float]:
    """Two numbers of counted pairs, where there are any.

    Returns:
        ``calibration_error``: the mean, over pairs, of how far the share ranked right of a stretch
        of differences is from the mean probability, sigmoid(difference), that the scores give it.
        ``longer_first``: of pairs of unequal length, the share whose longer answer scores more.

    Source: of the error Guo et al. 2017, arXiv:1706.04599, eq. 3, with the borders above.
    """
    stretches = _stretches(sums, "score")
    total = sum(pairs for pairs, _, _ in stretches)
    if not total:
        return {}
    off = math.fsum(abs(right - said) for _, right, said in stretches)
    found = {"calibration_error": off / total}
    unequal = sums["longer/pairs"] + sums["shorter/pairs"]
    return found | ({"longer_first": sums["longer_first"] / unequal} if unequal else {})


def details_of(sums: Sums) -> dict[str, Any]:
    """What a report shows of counted pairs, as JSON has it: shares by stretch and by length."""
    unequal = sums["longer/pairs"] + sums["shorter/pairs"]
    return {
        "by_score": _rows(sums, "score"),
        "by_margin": _rows(sums, "margin"),
        "by_length": {
            name: {"pairs": sums[f"{name}/pairs"], "right": sums[f"{name}/right"]}
            for name in LENGTHS
        },
        "longer_first": metrics_of(sums).get("longer_first"),
        "longer_better": sums["longer/pairs"] / unequal if unequal else None,
    }


def _stretches(sums: Sums, of: str) -> Sequence[tuple[float, float, float]]:
    return [
        (sums[f"{of}/{n}/pairs"], sums[f"{of}/{n}/right"], sums[f"{of}/{n}/said"])
        for n in range(len(BORDERS))
    ]


def _rows(sums: Sums, of: str) -> list[dict[str, float]]:
    """Of each stretch with pairs: where it begins, pairs, share ranked right, probability said."""
    return [
        {"from": border, "pairs": pairs, "right": right / pairs, "said": said / pairs}
        for border, (pairs, right, said) in zip(BORDERS, _stretches(sums, of), strict=True)
        if pairs
    ]
