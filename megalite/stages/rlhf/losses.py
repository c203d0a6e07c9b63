"""Losses per token or per ranking, before they are summed and divided by the global count."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


@dataclass(frozen=True)
class PolicyTerms:
    """What PPO's policy loss is made of, each [B, S] fp32 and 0 outside the response.

    Attributes:
        loss: the clipped surrogate, negated.
        ratio: new probability over old.
        clipped: 1 where the clipped branch was the larger loss.
        approximate_kl: half the squared change of the log-probability, in nats.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor
    approximate_kl: Tensor


@dataclass(frozen=True)
class Clip:
    """Which changes of a probability are rewarded.

    Attributes:
        low: largest fall of the ratio.
        high: largest rise of the ratio.
        by_answer: whether the ratio is one an answer, its tokens' geometric mean.
    """

    low: float
    high: float
    by_answer: bool = False


def policy_terms(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, mask: Tensor, clip: Clip
) -> PolicyTerms:
    """The clipped surrogate.

    Args:
        log_probs: [B, S] fp32 of the response tokens under the policy that is trained.
        old_log_probs: [B, S] fp32 under the policy that wrote them.
        advantages: [B, S] fp32.
        mask: [B, S] bool, one answer a row.
        clip: changes of the ratio that are rewarded.

    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; two bounds: Yu et al. 2025,
    arXiv:2503.14476, eq. 10; a ratio an answer: Zheng et al. 2025, arXiv:2507.18071, eq. 5 and 7.
    """
    change = torch.where(mask, log_probs - old_log_probs, 0.0)
    moved = change
    if clip.by_answer:
        moved = (change.sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)) * mask
    ratio = moved.exp()
    plain = -advantages * ratio
    bounded = -advantages * ratio.clamp(1 - clip.low, 1 + clip.high)
    kept = mask.to(plain.dtype)
    return PolicyTerms(
        loss=torch.maximum(plain, bounded) * kept,
        ratio=ratio.detach() * kept,
        clipped=(bounded > plain).to(plain.dtype) * kept,
        approximate_kl=0.5 * change.detach() ** 2,
    )


def kl_terms(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """An estimate of the KL to the reference that is never negative: q/p - log(q/p) - 1, [B, S].

    Args:
        log_probs: [B, S] fp32 under the policy that is trained, p.
        reference_log_probs: [B, S] fp32 under the reference, q.
        mask: [B, S] bool.

    Source: Shao et al. 2024, arXiv:2402.03300, eq. 4; Schulman 2020,
    joschu.net/blog/kl-approx.html.
    """
    change = torch.where(mask, reference_log_probs - log_probs, 0.0)
    return torch.expm1(change) - change


def value_terms(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the larger of the squared errors with and without clipping the change of the value.

    Args:
        values: [B, S] fp32 of the critic that is trained.
        old_values: [B, S] fp32 at the time of the rollout.
        returns: [B, S] fp32.
        mask: [B, S] bool.
        clip: largest change of a value, in units of reward.

    Returns:
        The loss and whether it was clipped, each [B, S] fp32 and 0 outside the mask.
    """
    bounded = old_values + (values - old_values).clamp(-clip, clip)
    plain, limited = (values - returns) ** 2, (bounded - returns) ** 2
    kept = mask.to(values.dtype)
    return 0.5 * torch.maximum(plain, limited) * kept, (limited > plain).to(values.dtype) * kept


def ranking_pairs(
    scores: Tensor, valid: Tensor, same: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Differences better minus worse of every pair of every ranking.

    Args:
        scores: [P, K] fp32, best first.
        valid: [P, K] bool, False for the missing tail of a shorter ranking.
        same: [P, K] int64, the first answer of the ranking with the same tokens; None: all differ.

    Returns:
        Differences [P, C(K, 2)] and which of them are of two valid answers that differ.
    """
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], 1, device=scores.device)
    kept = valid[:, better] & valid[:, worse]
    if same is not None:
        kept = kept & (same[:, better] != same[:, worse])
    return scores[:, better] - scores[:, worse], kept


def ranking_loss(scores: Tensor, valid: Tensor, same: Tensor | None = None) -> Tensor:
    """Each ranking's mean over its pairs of -log sigmoid(better - worse): [P] fp32.

    See :func:`ranking_pairs`. Pairs of equal answers are left out: they teach nothing.

    Source: Ouyang et al. 2022, arXiv:2203.02155, eq. 1.
    """
    difference, kept = ranking_pairs(scores, valid, same)
    return -(logsigmoid(difference) * kept).sum(1) / kept.sum(1).clamp(min=1)
