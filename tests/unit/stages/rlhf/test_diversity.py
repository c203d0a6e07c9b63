"""The share of different runs of tokens."""

import random

import pytest
from sacrebleu.metrics import BLEU

from megalite.stages.rlhf.diversity import distinct, self_bleu


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


def test_self_bleu_is_the_mean_of_each_answers_bleu_against_the_others():
    draw = random.Random(0)
    groups = [
        [draw.choices(range(6), k=draw.randint(4, 12)) for _ in range(size)] for size in (2, 3, 5)
    ]
    bleu = BLEU(smooth_method="add-k", smooth_value=1, effective_order=True, tokenize="none")
    texts = [[" ".join(map(str, answer)) for answer in group] for group in groups]
    scores = [
        bleu.sentence_score(text, group[:place] + group[place + 1 :]).score / 100
        for group in texts
        for place, text in enumerate(group)
    ]
    assert self_bleu(groups) == pytest.approx(sum(scores) / len(scores), rel=1e-9)


@pytest.mark.parametrize(
    ("groups", "value"),
    [
        ([[[1, 2, 3, 4, 5]] * 3], 1),
        ([[[7], [7]]], 1),
        ([[[1, 2], [3, 4]]], 0),
        ([[[1, 2, 3], [4]], [[5, 6], [5, 6]]], 0.5),
        ([], 0),
    ],
)
def test_self_bleu_of_equal_and_of_strange_answers(groups, value):
    assert self_bleu(groups) == pytest.approx(value)
