"""GRPO and its relatives against a loop over single answers and tokens."""

import itertools
import math

import pytest
import torch

from megalite.stages.rlhf.advantages import are_equal, group_advantages
from megalite.stages.rlhf.experience import Judgement
from megalite.stages.rlhf.groups import GroupLearning, group_experience
from megalite.stages.rlhf.losses import Clip
from megalite.stages.rlhf.updates import PolicyLoss
from megalite.stages.rules.config import ScoreConfig

GROUPS, SIZE, LONGEST, BETA = 7, 4, 7, 0.3
CLIP = Clip(0.1, 0.25)


def judgement() -> Judgement:
    """Answers of 1 to 7 tokens in rows of 9, some cut; one group's scores are all equal."""
    generator = torch.Generator().manual_seed(0)
    count, rows = GROUPS * SIZE, LONGEST + 2
    lengths = torch.randint(1, LONGEST + 1, (count, 1), generator=generator)
    column = torch.arange(rows)[None]
    mask = (column >= 1) & (column < 1 + lengths)
    draw = lambda: torch.randn(count, rows, generator=generator) * 0.3 - 1  # noqa: E731
    scores = torch.randn(count, generator=generator)
    scores[SIZE : 2 * SIZE] = 0.25
    ended = torch.rand(count, generator=generator) > 0.3
    assert 0 < ended.sum() < count
    return Judgement(mask, draw(), draw(), torch.zeros(count, rows), scores, ended)


class Loop:
    """The same over one answer and one token at a time."""

    def __init__(self, how: GroupLearning, in_reward: float, in_loss: float, clip: Clip) -> None:
        self.how, self.in_reward, self.in_loss, self.clip = how, in_reward, in_loss, clip

    def loss(self, judged: Judgement, new: torch.Tensor) -> torch.Tensor:
        tokens = [mask.nonzero().flatten().tolist() for mask in judged.mask]
        scores = judged.scores.tolist()
        groups = [range(g * SIZE, (g + 1) * SIZE) for g in range(GROUPS)]
        kept = [
            i
            for group in groups
            for i in group
            if (judged.ended[i] or not self.how.leaves_out_cut)
            and (len({scores[j] for j in group}) > 1 or not self.how.leaves_out_equal)
        ]
        advantages = self.advantages(judged, tokens, scores, groups, kept)
        answers = [self.answer(judged, new, i, tokens[i], advantages[i]) for i in kept]
        total = sum(len(tokens[i]) for i in kept)
        weights = {
            "token": [1 / total for _ in kept],
            "answer": [1 / len(kept) / len(tokens[i]) for i in kept],
            "length": [1 / len(kept) / LONGEST for _ in kept],
        }[self.how.loss_mean]
        return sum(w * terms for w, terms in zip(weights, answers, strict=True))

    def advantages(self, judged, tokens, scores, groups, kept) -> list[list[float]]:
        kl = (judged.log_probs - judged.reference_log_probs).tolist()
        if self.how.kind == "reinforce_pp":
            to_go = [[0.0] * len(rows) for rows in tokens]
            for i, rows in enumerate(tokens):
                earned = scores[i]
                for place in reversed(range(len(rows))):
                    earned -= self.in_reward * kl[i][rows[place]]
                    to_go[i][place] = earned
            flat = [x for i in kept for x in to_go[i]]
            mean = sum(flat) / len(flat)
            deviation = math.sqrt(sum((x - mean) ** 2 for x in flat) / len(flat))
            return [[(x - mean) / deviation for x in row] for row in to_go]
        totals = [
            score - self.in_reward * sum(kl[i][row] for row in tokens[i])
            for i, score in enumerate(scores)
        ]
        found = []
        for group in groups:
            own = [totals[i] for i in group]
            mean = sum(own) / SIZE
            deviation = math.sqrt(sum((x - mean) ** 2 for x in own) / (SIZE - 1))
            for x in own:
                found.append(
                    {
                        "grpo": (x - mean) / (deviation + 1e-4),
                        "dr_grpo": x - mean,
                        "rloo": x - (sum(own) - x) / (SIZE - 1),
                    }[self.how.kind]
                )
        return [[x] * len(rows) for x, rows in zip(found, tokens, strict=True)]

    def answer(self, judged, new, number, rows, advantages) -> torch.Tensor:
        """The sum over an answer's tokens of loss and KL."""
        changes = [new[number, row] - judged.log_probs[number, row] for row in rows]
        if self.clip.by_answer:
            changes = [sum(changes) / len(rows)] * len(rows)
        total = torch.zeros(())
        for row, change, advantage in zip(rows, changes, advantages, strict=True):
            ratio = change.exp()
            clipped = ratio.clamp(1 - self.clip.low, 1 + self.clip.high)
            total = total - torch.minimum(ratio * advantage, clipped * advantage)
            away = judged.reference_log_probs[number, row] - new[number, row]
            total = total + self.in_loss * (away.exp() - away - 1)
        return total


KINDS = ("grpo", "dr_grpo", "rloo", "reinforce_pp")
CASES = [
    *itertools.product(KINDS, ("token", "answer", "length"), (False,), (False,)),
    *itertools.product(KINDS, ("answer",), (False, True), (True,)),
]


@pytest.mark.parametrize(("kind", "mean", "by_answer", "leaves_out"), CASES)
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_advantages_and_loss_are_those_of_a_loop(kind, mean, by_answer, leaves_out, kl_in):
    judged, clip = judgement(), Clip(CLIP.low, CLIP.high, by_answer)
    how = GroupLearning(ScoreConfig(), kind, SIZE, mean, LONGEST, leaves_out, leaves_out)
    in_reward, in_loss = (BETA, 0.0) if kl_in == "reward" else (0.0, BETA)
    generator = torch.Generator().manual_seed(1)
    change = torch.randn(judged.mask.shape, generator=generator)
    change = change + 1.5 * torch.randn(len(change), 1, generator=generator)
    new = judged.log_probs + 0.2 * change
    ours, theirs = (new.clone().requires_grad_() for _ in range(2))
    experience, means = group_experience(judged, how, in_reward)
    answers, tokens = experience.num_answers, int(experience.mask.sum())
    scale = 1 / (tokens if mean == "token" else answers)
    loss, metrics = PolicyLoss(clip, scale, 1 / tokens, in_loss)((ours, new), experience)
    expected = Loop(how, in_reward, in_loss, clip).loss(judged, theirs)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    loss.backward()
    expected.backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)
    assert 0 < float(metrics["clip_fraction"]) < 1
    assert float(means["equal_groups"]) == pytest.approx(1 / GROUPS)
    assert float(means["reward"]) == pytest.approx(float(judged.scores.mean()))


def test_before_an_update_the_ratio_is_one_and_the_kl_counts_nothing_at_the_reference():
    judged = judgement()
    how = GroupLearning(ScoreConfig(), "grpo", SIZE, "answer", LONGEST)
    experience, _ = group_experience(judged, how, 0.0)
    result = judged.log_probs, judged.log_probs
    scale, token_scale = 1 / len(judged.mask), 1 / int(judged.mask.sum())
    loss, metrics = PolicyLoss(CLIP, scale, token_scale)(result, experience)
    assert float(metrics["ratio"]) == pytest.approx(1)
    assert float(metrics["clip_fraction"]) == 0
    assert float(loss) == pytest.approx(0, abs=1e-6)  # advantages of a group cancel


def test_groups_are_equal_but_for_rounding():
    scores = torch.tensor([0.1, 0.1 + 1e-8, 0.0, 0.0, 1.0, 1.01, -3.0, -3.0])
    assert are_equal(scores, 2).tolist() == [True, True, False, True]


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
@pytest.mark.parametrize("size", [3, 7, 8])
def test_nothing_is_learned_of_equal_scores_whose_mean_is_rounded(kind, size):
    scores = torch.tensor([0.1, 1000.1, -12345.6]).repeat_interleave(size)
    assert not group_advantages(scores, size, kind).any()
