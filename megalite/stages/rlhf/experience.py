"""Turns what the four models say about answers into what PPO learns from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from megalite.distributed.mesh import Axis
from megalite.distributed.sums import all_reduce_sum
from megalite.distributed.transfer import moved
from megalite.stages.rlhf.rewards import advantages_and_returns, clip_scores, token_rewards
from megalite.stages.rlhf.whiten import ALONE, whiten
from megalite.stages.rules.config import ScoreConfig

PARTS = "parts/"


class RewardConfig(ScoreConfig):
    """What answers are scored by, and how scores become advantages."""

    discount: float = Field(1.0, gt=0, le=1, description="gamma, weight of the next token's value")
    decay: float = Field(
        0.95, ge=0, le=1, description="lambda of the advantage estimate, its decay per token"
    )
    whiten_scores: bool = Field(
        False,
        description="whether scores are shifted and scaled to zero mean and unit variance over the "
        "global batch, before the KL penalty (LLaMA 2)",
    )
    whiten_rewards: bool = Field(
        False, description="whether rewards are scaled to unit variance over the global batch"
    )


@dataclass(frozen=True)
class Judgement:
    """What the models say about a batch of answers.

    Attributes:
        mask: [B, S] bool, rows whose label is a token of the answer.
        log_probs: [B, S] fp32 under the actor that wrote them.
        reference_log_probs: [B, S] fp32 under the frozen reference.
        values: [B, S] fp32, the critic's; 0 without one.
        scores: [B] fp32, the reward model's, those by rule, or their weighted sum.
        ended: [B] bool, answers with an end token.
        drawn: [B, S] fp32, log-probabilities by which tokens were drawn; None: not known.
        parts: [B] fp32 each, what ``scores`` is the sum of, by name, before its weight; none
            where it is one alone.
    """

    mask: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    values: Tensor
    scores: Tensor
    ended: Tensor
    drawn: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def kl(self) -> Tensor:
        """What each token's log-probability is above the reference's, in nats: [B, S] fp32."""
        return torch.where(self.mask, self.log_probs - self.reference_log_probs, 0.0)

    @property
    def gap(self) -> Tensor:
        """Sum over tokens of what drawing and a pass differ by, in nats."""
        if self.drawn is None:
            return self.log_probs.new_zeros(())
        return torch.where(self.mask, (self.log_probs - self.drawn).abs(), 0.0).sum()

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name; those of ``parts`` behind ``parts/``."""
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        parts = {f"{PARTS}{name}": score for name, score in named.pop("parts").items()}
        return {name: value for name, value in named.items() if value is not None} | parts

    @classmethod
    def of_tensors(cls, named: Mapping[str, Tensor]) -> "Judgement":
        """The judgement with these :meth:`tensors`."""
        own = {name: value for name, value in named.items() if not name.startswith(PARTS)}
        parts = {n.removeprefix(PARTS): x for n, x in named.items() if n.startswith(PARTS)}
        return cls(**own, parts=parts)

    def select(self, index: Tensor) -> "Judgement":
        """What is said of some answers, [B'] int64."""
        return Judgement.of_tensors(
            {n: x.index_select(0, index) for n, x in self.tensors().items()}
        )

    @classmethod
    def joined(cls, judgements: Sequence["Judgement"]) -> "Judgement":
        """What is said of the answers of several, one after another, padded to the longest."""
        length = max(one.mask.shape[1] for one in judgements)
        each = [one.tensors() for one in judgements]

        def longer(x: Tensor) -> Tensor:
            return x if x.dim() == 1 else pad(x, (0, length - x.shape[1]))

        return cls.of_tensors({n: torch.cat([longer(one[n]) for one in each]) for n in each[0]})


@dataclass(frozen=True)
class Experience:
    """What the updates read, each [B, S] and 0 outside the answers.

    Attributes:
        mask: bool, rows whose label is a token of an answer that is learned from.
        log_probs: fp32 of the answers when they were written.
        values: fp32 of the critic at that time; 0 without one.
        advantages: fp32.
        returns: fp32, what the critic should have said; 0 without one.
        reference_log_probs: fp32 of the answers under the reference.
        weights: fp32, of each token's loss.
    """

    mask: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    reference_log_probs: Tensor
    weights: Tensor

    @property
    def num_answers(self) -> int:
        """Answers that are learned from (reads the mask: a host sync on a GPU)."""
        return int(self.mask.any(1).sum())

    def map(self, change: Callable[[Tensor], Tensor]) -> "Experience":
        """Each part changed alike."""
        return Experience(*(change(getattr(self, part.name)) for part in fields(self)))

    def select(self, index: Tensor) -> "Experience":
        """The experience of some sequences, [B'] int64."""
        return self.map(lambda part: part.index_select(0, index))

    def to(self, device: torch.device | str) -> "Experience":
        """The same with every tensor on ``device``."""
        return self.map(lambda part: moved(part, device))

    def without_answers(self) -> "Experience":
        """Experience of the same shape that weighs nothing."""
        return self.map(torch.zeros_like)

    @classmethod
    def joined(cls, parts: Sequence["Experience"]) -> "Experience":
        """The experience of all sequences of several batches, one after another."""
        length = max(part.mask.shape[1] for part in parts)
        padded = [part.map(lambda x: pad(x, (0, length - x.shape[1]))) for part in parts]
        names = [part.name for part in fields(cls)]
        return cls(*(torch.cat([getattr(part, name) for part in padded]) for name in names))


def gather_experience(
    judged: Judgement,
    config: RewardConfig,
    kl_coefficient: float,
    axis: Axis = ALONE,
) -> tuple[Experience, dict[str, Tensor]]:
    """Make rewards, advantages and returns.

    Args:
        judged: this rank's answers.
        config: how scores become advantages.
        kl_coefficient: penalty per nat.
        axis: the data-parallel ranks that hold the rest of the batch.

    Returns:
        The experience, and means over the global batch: ``reward`` (score per response), ``kl``
        (nats per response), ``response_tokens``, ``ended`` (share), ``rollout_gap`` (nats per token
        between drawing and a pass), and ``reward/NAME`` of each part of a score with several.

    Comm: all-reduces of a few numbers over ``axis``.
    """
    mask, kl = judged.mask, judged.kl
    scores = learned = final_scores(judged, config)
    if config.whiten_scores:
        is_answer = mask.any(1, keepdim=True)
        learned = whiten(scores[:, None], is_answer, axis)[:, 0]
    rewards = token_rewards(kl, learned, mask, kl_coefficient)
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, axis, shift_mean=False)
    advantages, returns = advantages_and_returns(
        rewards, judged.values, mask, config.discount, config.decay
    )
    experience = Experience(
        mask,
        judged.log_probs.masked_fill(~mask, 0.0),
        judged.values.masked_fill(~mask, 0.0),
        whiten(advantages, mask, axis),
        returns,
        judged.reference_log_probs.masked_fill(~mask, 0.0),
        mask.float(),
    )
    return experience, means_of(judged, scores, axis)


def final_scores(judged: Judgement, config: ScoreConfig) -> Tensor:
    """Scores of answers as they are learned from, [B] fp32: moved, cut ones, clipped."""
    scores = judged.scores + config.bias
    if config.score_without_end is not None:
        scores = scores.masked_fill(~judged.ended, config.score_without_end)
    return clip_scores(scores, config.score_limit)


def means_of(judged: Judgement, scores: Tensor, axis: Axis) -> dict[str, Tensor]:
    """What a rollout shows: means over the global batch; see :func:`gather_experience`."""
    mask = judged.mask
    sums = (
        scores.sum(),
        judged.kl.sum(),
        mask.sum(),
        judged.ended.sum(),
        *(judged.parts[name].sum() for name in judged.parts),
        judged.gap,
        mask.new_tensor(len(mask), dtype=torch.int64),
    )
    *totals, gap, count = all_reduce_sum(torch.stack([part.double() for part in sums]), axis)
    parts = [f"reward/{name}" for name in judged.parts]
    names = ("reward", "kl", "response_tokens", "ended", *parts)
    means = {name: total / count for name, total in zip(names, totals, strict=True)}
    return means | {"rollout_gap": gap / totals[2]}
