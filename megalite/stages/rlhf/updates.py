"""The losses of the stages after pretraining, as the trainer calls them: (result, extra)."""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megalite.config import Section
from megalite.config.amount import Length
from megalite.distributed.transfer import moved
from megalite.models.outputs import Scale
from megalite.stages.rlhf.experience import Experience
from megalite.stages.rlhf.losses import (
    Clip,
    kl_terms,
    policy_terms,
    ranking_loss,
    ranking_pairs,
    value_terms,
)

Metrics = dict[str, Tensor]
LOG_PROB_CHANGE = "log_prob_change"  # nats per token since the answers were written


class PolicyUpdateConfig(Section):
    """How a policy learns from a batch of answers."""

    clip: float = Field(
        0.2, gt=0, description="largest relative change of a token's probability that is rewarded"
    )
    clip_high: float = Field(
        0.0, ge=0, description="largest relative rise of it that is rewarded; 0: as update.clip"
    )
    ratio: Literal["token", "answer"] = Field(
        "token",
        description="whose probability is compared with that when the answers were written: each "
        "token's, or an answer's, as the geometric mean of its tokens' (GSPO)",
    )
    epochs: int = Field(4, gt=0, description="passes over each batch of answers")
    mini_batches: int = Field(1, gt=0, description="optimizer steps per pass")
    pretrain_coefficient: float = Field(
        0.0,
        ge=0,
        description="weight of the pretraining loss beside the policy's (PPO-ptx); 0: none",
    )

    @property
    def bounds(self) -> Clip:
        """The changes of a probability that are rewarded."""
        return Clip(self.clip, self.clip_high or self.clip, self.ratio == "answer")


class UpdateConfig(PolicyUpdateConfig):
    """How PPO learns from a batch of answers."""

    value_clip: float = Field(
        0.2, gt=0, description="largest change of a value that is rewarded, in units of score"
    )
    critic_alone: Length = Field(
        0.0,
        description="length at the run's beginning in which the critic learns alone: '20 steps', "
        "samples, epochs or a share (Baichuan 2)",
    )


@dataclass(frozen=True)
class Pretraining:
    """Marks a micro-batch of pretraining text beside the answers.

    Attributes:
        scale: its coefficient over the targets of the global batch.
    """

    scale: Scale


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped loss of the actor, and its KL to the reference where that is in the loss.

    Attributes:
        clip: changes of a probability that are rewarded.
        scale: one over the global mini-batch's answer tokens or answers, as the experience's
            weights are of tokens or of answers.
        token_scale: one over its answer tokens, of which metrics are means.
        kl_coefficient: weight of a nat a token; 0: the KL is not in the loss.
    """

    clip: Clip
    scale: Scale
    token_scale: Scale
    kl_coefficient: float = 0.0

    def __call__(
        self, result: tuple[Tensor, Tensor] | Tensor, extra: Experience | Pretraining
    ) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch; ``result`` is log-probabilities and entropy, each [B, S].

        Of text it may be the sum of its losses.
        """
        if isinstance(extra, Pretraining):
            summed = result if isinstance(result, Tensor) else -result[0].sum()
            loss = summed * extra.scale
            return loss, {"pretraining_loss": loss.detach()}
        log_probs, entropy = result
        terms = policy_terms(log_probs, extra.log_probs, extra.advantages, extra.mask, self.clip)
        loss = (terms.loss * extra.weights).sum() * self.scale
        change = (log_probs.detach() - extra.log_probs).abs() * extra.mask
        metrics = {
            "policy_loss": loss.detach(),
            "clip_fraction": terms.clipped.sum() * self.token_scale,
            "approximate_kl": terms.approximate_kl.sum() * self.token_scale,
            "ratio": terms.ratio.sum() * self.token_scale,
            LOG_PROB_CHANGE: change.sum() * self.token_scale,
            "entropy": (entropy * extra.mask).sum() * self.token_scale,
        }
        if self.kl_coefficient:
            kl = kl_terms(log_probs, extra.reference_log_probs, extra.mask) * extra.weights
            own = self.kl_coefficient * kl.sum() * self.scale
            loss, metrics["kl_loss"] = loss + own, own.detach()
        return loss, metrics


@dataclass(frozen=True)
class ValueLoss:
    """PPO's clipped loss of the critic.

    Attributes:
        clip: largest rewarded change of a value.
        scale: one over the answer tokens of the global mini-batch.
    """

    clip: float
    scale: Scale

    def __call__(self, result: Tensor, extra: Experience) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch; ``result`` is the values, [B, S]."""
        terms, clipped = value_terms(result, extra.values, extra.returns, extra.mask, self.clip)
        loss = terms.sum() * self.scale
        fraction = clipped.sum() * self.scale
        return loss, {"value_loss": loss.detach(), "value_clip_fraction": fraction}


@dataclass(frozen=True)
class Rankings:
    """Which sequences of a micro-batch are the answers of which ranking.

    Attributes:
        sequences: [P, K] int64, sequences of the batch, best first.
        ends: [P, K] int64, position of each answer's last token.
        valid: [P, K] bool, False for the missing tail of a shorter ranking.
        same: [P, K] int64, the first answer of the ranking with the same tokens; None: all differ.
        levels: [P, K] fp32, by whose differences better answers must score more; None: all 0.
    """

    sequences: Tensor
    ends: Tensor
    valid: Tensor
    same: Tensor | None = None
    levels: Tensor | None = None

    def to(self, device: torch.device) -> "Rankings":
        """The same with every tensor on ``device``."""
        sequences, ends, valid = (moved(t, device) for t in (self.sequences, self.ends, self.valid))
        same, levels = (None if t is None else moved(t, device) for t in (self.same, self.levels))
        return Rankings(sequences, ends, valid, same, levels)

    @property
    def num_learned(self) -> int:
        """Rankings with two answers that differ."""
        _, kept = ranking_pairs(self.ends, self.valid, self.same)
        return int(kept.any(1).sum())

    def counts(self, values: Tensor) -> Metrics:
        """Pairs that are ranked right by the values [B, S], all pairs, and those of equal answers.

        The last are not among the others: which of two equal answers scores higher is rounding.
        """
        scores = values[self.sequences, self.ends]
        difference, kept = ranking_pairs(scores, self.valid, self.same)
        _, both = ranking_pairs(scores, self.valid)
        return {
            "correct_pairs": ((difference > 0) & kept).sum().float(),
            "pairs": kept.sum().float(),
            "equal_pairs": (both & ~kept).sum().float(),
        }


@dataclass(frozen=True)
class RankingLoss:
    """The reward model's loss: each ranking weighs the same, however many answers it has.

    With levels it is ``-log sigmoid(better - worse - margin)``.

    Source: of the margin Touvron et al. 2023, arXiv:2307.09288, eq. 2.

    Attributes:
        scale: one over the rankings of the global batch with answers that differ.
    """

    scale: Scale

    def __call__(self, result: Tensor, extra: Rankings) -> tuple[Tensor, Metrics]:
        """Loss of one micro-batch and counts of its pairs; ``result`` is the values, [B, S]."""
        scores = result[extra.sequences, extra.ends]
        if extra.levels is not None:
            scores = scores - extra.levels
        loss = ranking_loss(scores, extra.valid, extra.same).sum() * self.scale
        return loss, {"ranking_loss": loss.detach(), **extra.counts(result.detach())}


def mini_batches(num_rows: int, config: PolicyUpdateConfig, seed: int) -> list[list[Tensor]]:
    """Answers of each optimizer step of each pass, shuffled anew every pass.

    Args:
        num_rows: answers of all data-parallel ranks, or with one mini-batch a pass of this one; a
            multiple of ``config.mini_batches``.
        config: passes, and steps per pass.
        seed: of the order.

    Returns:
        ``epochs`` lists of ``mini_batches`` index tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(num_rows, generator=generator) for _ in range(config.epochs)]
    return [list(order.chunk(config.mini_batches)) for order in orders]
