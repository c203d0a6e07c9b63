"""Rewards per token, and their advantages and returns."""

import torch
from torch import Tensor


def last_index(mask: Tensor) -> Tensor:
    """The last masked-in position of each row: int64 [B]; 0 for a row without any."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    return (positions * mask).amax(1)


def token_rewards(
    kl: Tensor, scores: Tensor, mask: Tensor, kl_coefficient: float | Tensor
) -> Tensor:
    """The KL penalty of each response token, with the score added at the last one.

    Args:
        kl: [B, S] fp32, log-probability under the policy minus that under the reference.
        scores: [B] fp32, the reward model's.
        mask: [B, S] bool, rows whose label is a response token.
        kl_coefficient: reward per nat.

    Returns:
        [B, S] fp32, 0 outside the response.
    """
    rewards = -kl_coefficient * kl * mask
    last = last_index(mask)[:, None]
    return rewards.scatter_add(1, last, (scores * mask.any(1))[:, None])


def advantages_and_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, discount: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over each row's one run of response tokens.

    The recursion A_t = delta_t + discount * decay * A_{t+1} is a scan by doubling: log2(S) steps
    over whole tensors in place of S.

    Args:
        rewards: [B, S] fp32.
        values: [B, S] fp32, the critic's at the row that predicts each token.
        mask: [B, S] bool, one run of True a row; the value after its end is 0.
        discount: gamma.
        decay: lambda.

    Returns:
        Advantages and returns, each [B, S], 0 outside the mask.

    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.
    """
    values, rewards = values * mask, rewards * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    advantages = (rewards + discount * following - values) * mask
    factor, span = discount * decay, 1
    while span < mask.shape[1]:
        ahead = torch.nn.functional.pad(advantages[:, span:], (0, span))
        advantages = advantages + factor * ahead
        factor, span = factor * factor, 2 * span
    advantages = advantages * mask
    return advantages, advantages + values


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Clip scores to [-limit, limit]; a limit of 0 leaves them."""
    return scores.clamp(-limit, limit) if limit > 0 else scores
