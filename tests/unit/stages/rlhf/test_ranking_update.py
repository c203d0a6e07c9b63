import numpy as np
import torch
from torch.nn.functional import logsigmoid

from megalite.data.chat.datasets import Ranked, ranking_batch
from megalite.data.example import decoder_example
from megalite.models.batch import IGNORE
from megalite.stages.rlhf.losses import ranking_loss
from megalite.stages.rlhf.updates import RankingLoss, Rankings


def test_rankings_of_a_batch_read_their_own_last_tokens():
    values = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rows = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 0]])
    ends = torch.tensor([[4, 2, 3, 1], [0, 1, 2, 0]])
    valid = torch.tensor([[True] * 4, [True] * 3 + [False]])
    loss, metrics = RankingLoss(scale=0.5)(values, Rankings(rows, ends, valid))
    scores = torch.stack(
        [values[r, e] for r, e in zip(rows.flatten(), ends.flatten(), strict=True)]
    )
    assert torch.allclose(loss, ranking_loss(scores.view(2, 4), valid).mean())
    assert metrics["pairs"] == 6 + 3
    loss.backward()
    touched = {(4, 0), (5, 1), (6, 2), (0, 4), (1, 2), (2, 3), (3, 1)}
    assert {tuple(place) for place in values.grad.nonzero().tolist()} == touched


def test_splitting_rankings_over_micro_batches_changes_nothing():
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    rows, ends = torch.arange(8).view(2, 4), torch.full((2, 4), 2)
    valid = torch.ones(2, 4, dtype=torch.bool)
    loss = RankingLoss(0.5)
    whole, counts = loss(values, Rankings(rows, ends, valid))
    halves = [loss(values, Rankings(rows[i : i + 1], ends[i : i + 1], valid[:1])) for i in (0, 1)]
    assert torch.allclose(whole, halves[0][0] + halves[1][0])
    assert counts["correct_pairs"] == sum(half[1]["correct_pairs"] for half in halves)


def test_pairs_of_equal_answers_are_counted_apart_and_teach_nothing():
    """Three answers of which the last two are equal, and two that are equal."""
    values = torch.tensor([[1.0, 5.0, 5.1], [3.0, 2.9, 0.0]], requires_grad=True)
    rows, ends = torch.tensor([[0] * 3, [1] * 3]), torch.tensor([[0, 1, 2], [0, 1, 0]])
    valid = torch.tensor([[True] * 3, [True, True, False]])
    rankings = Rankings(rows, ends, valid, same=torch.tensor([[0, 1, 1], [0, 0, 0]]))
    assert rankings.num_learned == 1
    loss, metrics = RankingLoss(scale=1.0)(values, rankings)
    pairs = -logsigmoid(torch.tensor([1.0 - 5.0, 1.0 - 5.1]))
    assert torch.allclose(loss, pairs.mean())
    counts = {name: int(metrics[name]) for name in ("correct_pairs", "pairs", "equal_pairs")}
    assert counts == {"correct_pairs": 0, "pairs": 2, "equal_pairs": 2}
    loss.backward()
    assert not values.grad[1].any()


def test_answers_are_equal_where_their_tokens_are():
    answers = [[7, 8], [7], [7, 8], [7]]
    examples = [decoder_example(np.array(a), np.full(len(a), IGNORE)) for a in answers]
    made = ranking_batch([examples, examples[:2]], [0, 1])
    assert made.same.tolist() == [[0, 1, 0, 1], [0, 1, 0, 0]]


def test_a_better_answer_must_score_more_by_the_margin():
    """Llama 2's loss of a pair, and of three answers whose margins add up."""
    scores = torch.tensor([[2.0, 1.5, 0.0], [1.0, 3.0, 0.0]], requires_grad=True)
    rows, ends = torch.tensor([[0] * 3, [1] * 3]), torch.tensor([[0, 1, 2], [0, 1, 0]])
    valid = torch.tensor([[True] * 3, [True, True, False]])
    ranked = [Ranked.of([], (), 2.0), Ranked([], Ranked.of([None] * 3, (0.5, 1.0), 2.0).levels)]
    assert ranked[0].levels == []
    assert ranked[1].levels == [0.0, -1.0, -3.0]
    levels = torch.tensor([ranked[1].levels, [0.0, -0.25, 0.0]])
    rankings = Rankings(rows, ends, valid, levels=levels)
    loss, metrics = RankingLoss(scale=1.0)(scores, rankings)
    first = [2.0 - 1.5 + (-1.0), 2.0 - 0.0 + (-3.0), 1.5 - 0.0 + (-2.0)]
    second = -logsigmoid(torch.tensor(1.0 - 3.0 - 0.25))
    assert torch.allclose(loss, -logsigmoid(torch.tensor(first)).mean() + second)
    assert metrics["correct_pairs"] == 3  # of scores as they are
