"""Counts of ranked pairs against a plain loop over them."""

import math
import random

import pytest
import torch

from megalite.stages.ranked import BORDERS, Pairs, details_of, metrics_of


def counted(pairs: list[tuple[float, int, float]], parts: int = 1) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in range(parts):
        scores, tokens, margins = zip(*pairs[part::parts], strict=True)
        each = Pairs(torch.tensor(scores), torch.tensor(tokens), torch.tensor(margins))
        for name, value in each.sums().items():
            total[name] = total.get(name, 0.0) + float(value)
    return total


def drawn(count: int) -> list[tuple[float, int, float]]:
    draw = random.Random(1)
    return [
        (draw.gauss(0.5, 2), draw.randint(-3, 3), draw.choice([0.25, 1 / 3, 1.0]))
        for _ in range(count)
    ]


def test_stretches_calibration_and_lengths_are_those_of_a_plain_loop():
    pairs = drawn(200)
    sums = counted(pairs)
    assert counted(pairs, 3) == pytest.approx(sums)
    details, found = details_of(sums), metrics_of(sums)
    off = 0.0
    for number, row in enumerate(details["by_score"]):
        end = [*BORDERS[1:], math.inf][number]
        own = [score for score, _, _ in pairs if BORDERS[number] <= abs(score) < end]
        right = sum(score > 0 for score in own) / len(own)
        said = sum(1 / (1 + math.exp(-abs(score))) for score in own) / len(own)
        assert row == pytest.approx(
            {"from": BORDERS[number], "pairs": len(own), "right": right, "said": said}, rel=1e-5
        )
        off += len(own) * abs(right - said)
    assert found["calibration_error"] == pytest.approx(off / len(pairs), rel=1e-5)
    by_margin = {row["from"]: row["pairs"] for row in details["by_margin"]}
    assert by_margin == {
        0.25: sum(margin < 0.5 for *_, margin in pairs),
        1.0: sum(margin == 1 for *_, margin in pairs),
    }
    unequal = [(score, tokens) for score, tokens, _ in pairs if tokens]
    first = sum((score > 0) == (tokens > 0) for score, tokens in unequal)
    assert found["longer_first"] == details["longer_first"] == first / len(unequal)
    shorter = [score for score, tokens in unequal if tokens < 0]
    right = sum(score > 0 for score in shorter)
    assert details["by_length"]["shorter"] == {"pairs": len(shorter), "right": right}


def test_without_pairs_or_margins_nothing_is_said_of_them():
    nothing = Pairs(torch.zeros(0), torch.zeros(0)).sums()
    assert metrics_of({name: float(value) for name, value in nothing.items()}) == {}
    equal = Pairs(torch.tensor([1.0]), torch.tensor([0])).sums()
    sums = {name: float(value) for name, value in equal.items()}
    assert set(metrics_of(sums)) == {"calibration_error"}
    details = details_of(sums)
    assert details["by_margin"] == [] and details["longer_first"] is None
