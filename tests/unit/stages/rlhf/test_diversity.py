"""The share of different runs of tokens."""

import pytest

from megalite.stages.rlhf.diversity import distinct


@pytest.mark.parametrize(
    ("answers", "shares"),
    [
        ([[1, 2, 1, 2]], (2 / 4, 2 / 3, 1)),
        ([[1, 2, 3], [1, 2, 3]], (3 / 6, 2 / 4, 1 / 2)),
        ([[1], [2]], (1, 0, 0)),
        ([], (0, 0, 0)),
    ],
)
def test_runs_are_counted_over_all_answers_and_within_each(answers, shares):
    assert [distinct(answers, n) for n in (1, 2, 3)] == pytest.approx(shares)
