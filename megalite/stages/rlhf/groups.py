"""Learning from groups of answers to one prompt, without a critic."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.distributed.mesh import Axis
from megalite.distributed.sums import all_reduce_sum
from megalite.stages.rlhf.advantages import (
    Kind,
    are_equal,
    deviation,
    group_advantages,
    returns_to_go,
)
from megalite.stages.rlhf.experience import Experience, Judgement, final_scores, means_of
from megalite.stages.rlhf.rewards import token_rewards
from megalite.stages.rlhf.rollout import RolloutConfig
from megalite.stages.rlhf.updates import PolicyUpdateConfig
from megalite.stages.rlhf.whiten import ALONE, whiten
from megalite.stages.rules.config import ScoreConfig

LossMean = Literal["token", "answer", "length"]
LOSS_MEANS: dict[Kind, LossMean] = {  # their authors'
    "grpo": "answer",
    "dr_grpo": "length",
    "rloo": "length",
    "reinforce_pp": "token",
}


class AdvantageConfig(Section):
    """How scores become advantages."""

    kind: Kind = Field(
        "grpo",
        description="what a score is compared with: grpo: its group's mean and standard deviation; "
        "dr_grpo: the mean alone; rloo: the mean of the group's others; reinforce_pp: the returns "
        "of all tokens of the global batch",
    )


class GroupRolloutConfig(RolloutConfig):
    """How groups of answers are drawn: from the whole distribution that is trained."""

    answers: int = Field(8, gt=0, description="answers to each prompt, a group")
    redraws: int = Field(
        0,
        ge=0,
        description="times that a group whose scores are all equal is replaced by a group of "
        "another prompt (dynamic sampling)",
    )


class GroupUpdateConfig(PolicyUpdateConfig):
    """How a policy learns from groups of answers."""

    epochs: int = Field(1, gt=0, description="passes over each batch of answers")
    loss_mean: Literal["own", "token", "answer", "length"] = Field(
        "own",
        description="what the loss is a mean over: all tokens of a mini-batch; answers, each the "
        "mean over its tokens; answers, each its sum over rollout.max_new_tokens; own: "
        "token for reinforce_pp, answer for grpo, length for dr_grpo and rloo",
    )
    leave_out_cut: bool = Field(
        False,
        description="whether nothing is learned from answers that were cut before their end "
        "(overlong filtering); their scores count in their groups",
    )
    leave_out_equal: bool = Field(
        False, description="whether nothing is learned from groups whose scores are all equal"
    )


@dataclass(frozen=True)
class GroupLearning:
    """How groups are learned from.

    Attributes:
        scores: what answers are scored by.
        kind: what scores are compared with.
        size: answers of a group, G.
        loss_mean: what the loss is a mean over.
        max_new_tokens: most tokens of an answer.
        leaves_out_cut: whether nothing is learned from answers without an end.
        leaves_out_equal: whether nothing is learned from groups of equal scores.
    """

    scores: ScoreConfig
    kind: Kind
    size: int
    loss_mean: LossMean
    max_new_tokens: int
    leaves_out_cut: bool = False
    leaves_out_equal: bool = False


def group_experience(
    judged: Judgement, how: GroupLearning, kl_coefficient: float, axis: Axis = ALONE
) -> tuple[Experience, dict[str, Tensor]]:
    """Make advantages and weights of tokens.

    Args:
        judged: this rank's answers, those of a group side by side.
        how: they are learned from.
        kl_coefficient: penalty per nat in the rewards; 0: the KL is not in them.
        axis: the data-parallel ranks that hold the rest of the batch.

    Returns:
        The experience, and means over the global batch: those of :func:`gather_experience`, the
        share of ``equal_groups`` and the ``score_deviation`` within a group.

    Comm: all-reduces of a few numbers over ``axis``.
    """
    scores = final_scores(judged, how.scores)
    equal = are_equal(scores, how.size)
    mask = judged.mask & _learned(judged, equal, how)[:, None]
    nothing = torch.zeros_like(judged.log_probs)
    experience = Experience(
        mask,
        judged.log_probs.masked_fill(~mask, 0.0),
        nothing,
        _advantages(judged, scores, mask, how, kl_coefficient, axis),
        nothing,
        judged.reference_log_probs.masked_fill(~mask, 0.0),
        _weights(mask, how),
    )
    spread = deviation(scores, how.size) if how.size > 1 else torch.zeros_like(scores)
    sums = torch.stack(
        (equal.double().sum(), spread.double().sum(), equal.new_ones(()) * len(equal))
    )
    num_equal, deviations, count = all_reduce_sum(sums, axis)
    means = {"equal_groups": num_equal / count, "score_deviation": deviations / count}
    return experience, means_of(judged, scores, axis) | means


def _learned(judged: Judgement, equal: Tensor, how: GroupLearning) -> Tensor:
    """Which answers are learned from, bool [B]."""
    learned = torch.ones_like(judged.ended)
    if how.leaves_out_cut:
        learned = learned & judged.ended
    if how.leaves_out_equal:
        learned = learned & ~equal.repeat_interleave(how.size)
    return learned


def _advantages(
    judged: Judgement,
    scores: Tensor,
    mask: Tensor,
    how: GroupLearning,
    kl_coefficient: float,
    axis: Axis,
) -> Tensor:
    """Of each token of ``mask``, [B, S] fp32."""
    if how.kind == "reinforce_pp":
        rewards = token_rewards(judged.kl, scores, judged.mask, kl_coefficient)
        return whiten(returns_to_go(rewards, judged.mask), mask, axis)
    if kl_coefficient:
        scores = scores - kl_coefficient * judged.kl.sum(1)
    return group_advantages(scores, how.size, how.kind)[:, None] * mask


def _weights(mask: Tensor, how: GroupLearning) -> Tensor:
    """What each token's loss weighs, before it is divided by the tokens or answers: [B, S] fp32."""
    if how.loss_mean == "length":
        return mask.float() / how.max_new_tokens
    if how.loss_mean == "answer":
        return mask / mask.sum(1, keepdim=True).clamp(min=1)
    return mask.float()
