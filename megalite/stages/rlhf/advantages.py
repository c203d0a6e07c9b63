"""Advantages without a critic: an answer is compared with others to its prompt, or with all."""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["grpo", "dr_grpo", "rloo", "reinforce_pp"]
DEVIATION_ADDED = 1e-4  # to a group's standard deviation, as TRL's GRPOTrainer adds it
SAME = 1e-6  # scores of a group that differ by less than this share of the largest are equal


def group_advantages(scores: Tensor, size: int, kind: Kind) -> Tensor:
    """Advantages of whole answers, from the scores of their groups.

    Args:
        scores: [B] fp32, the answers of each prompt side by side.
        size: answers of a prompt, G.
        kind: ``grpo``: (r - mean) / (deviation + 1e-4), the deviation with G - 1 in its
            denominator; ``dr_grpo``: r - mean; ``rloo``: r - mean of the G - 1 others.

    Returns:
        [B] fp32; 0 in groups whose scores are all equal, whose rounded mean need not be.

    Source: GRPO: Shao et al. 2024, arXiv:2402.03300, section 4.1.2. Dr. GRPO: Liu et al. 2025,
    arXiv:2503.20783, section 3.2. RLOO: Kool et al. 2019; Ahmadian et al. 2024, arXiv:2402.14740,
    section 3.
    """
    groups = scores.double().view(-1, size)
    advantages = groups - groups.mean(1, keepdim=True)
    if kind == "rloo":
        advantages = advantages * size / (size - 1)
    if kind == "grpo":
        advantages = advantages / (groups.std(1, keepdim=True) + DEVIATION_ADDED)
    nothing = are_equal(scores, size)[:, None]
    return advantages.masked_fill(nothing, 0.0).view(-1).to(scores.dtype)


def returns_to_go(rewards: Tensor, mask: Tensor) -> Tensor:
    """What each token's answer still earns, the token's own reward included.

    Args:
        rewards: [B, S] fp32.
        mask: [B, S] bool.

    Returns:
        [B, S] fp32, 0 outside the mask. REINFORCE++ whitens them over the global batch.

    Source: Hu 2025, arXiv:2501.03262, section 3.
    """
    earned = (rewards * mask).flip(1).cumsum(1).flip(1)
    return earned * mask


def are_equal(scores: Tensor, size: int) -> Tensor:
    """Which groups have scores that are all equal, and so nothing to compare: bool [B / G]."""
    groups = scores.view(-1, size)
    most, least = groups.amax(1), groups.amin(1)
    return most - least <= SAME * torch.maximum(most.abs(), least.abs())


def deviation(scores: Tensor, size: int) -> Tensor:
    """The standard deviation of each group's scores, [B / G]."""
    return scores.view(-1, size).std(1)
