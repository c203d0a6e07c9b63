"""A micro-batch of comparisons, and its loss as the trainer calls it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from megalite.data.arrays import Float32
from megalite.data.chat.preferences import Comparison
from megalite.data.example import Example, collate, pack
from megalite.distributed.transfer import moved
from megalite.models.batch import IGNORE, Batch
from megalite.models.outputs import Scale
from megalite.stages.preferences.config import PreferenceLossConfig
from megalite.stages.preferences.losses import (
    dpo_loss,
    ipo_loss,
    kto_loss,
    odds_ratio_loss,
    simpo_loss,
)

Metrics = dict[str, Tensor]
Judged = tuple[Comparison, Float32]  # a comparison, and the reference's number of each example
# Sums that metrics are quotients of: a metric's name, its sum's and its count's.
QUOTIENTS = {
    "accuracy": ("correct_pairs", "pairs"),
    "margin": ("margins", "pairs"),
    "chosen_reward": ("chosen_rewards", "chosen"),
    "rejected_reward": ("rejected_rewards", "rejected"),
}


@dataclass(frozen=True)
class Answers:
    """Answers that share a sequence, unseen by each other, without a row between them.

    Attributes:
        batch: [1, S].
        lengths: rows of each of the A answers; their sum is S.
        targets: fp32 [A], targets of each.
        reference: fp32 [A], log-probability of each under the reference, in nats; 0 without one.
    """

    batch: Batch
    lengths: tuple[int, ...]
    targets: Tensor
    reference: Tensor

    @classmethod
    def of(cls, examples: Sequence[Example], reference: Float32, sample_id: int) -> "Answers":
        """Put examples side by side."""
        targets = [float((example.labels != IGNORE).sum()) for example in examples]
        return cls(
            collate([pack(examples)], [sample_id]),
            tuple(len(example) for example in examples),
            torch.tensor(targets),
            torch.from_numpy(reference),
        )

    def to(self, device: torch.device) -> "Answers":
        """The same with every tensor on ``device``."""
        return Answers(
            self.batch.to(device),
            self.lengths,
            moved(self.targets, device),
            moved(self.reference, device),
        )

    def sums(self, log_probs: Tensor) -> Tensor:
        """The log-probability of each answer, [A], of those of rows, [1, S], in nats."""
        parts = log_probs[0, : sum(self.lengths)].split(self.lengths)
        return torch.stack([part.sum() for part in parts])


@dataclass(frozen=True)
class Comparisons:
    """A micro-batch.

    Attributes:
        answers: A of them.
        pairs: int64 [M, 2], the better and the worse answer of each pair.
        good: bool [A], which answers are good by themselves.
        judged: bool [A], which answers count by themselves.
        others: answers to other prompts (KTO), or None.
    """

    answers: Answers
    pairs: Tensor
    good: Tensor
    judged: Tensor
    others: Answers | None = None

    @classmethod
    def of(cls, items: Sequence[Judged], places: Sequence[int]) -> "Comparisons":
        """Put comparisons, and their places in the run's order, into a micro-batch."""
        examples: list[Example] = []
        pairs: list[tuple[int, int]] = []
        reference: list[Float32] = []
        for item, numbers in items:
            first = len(examples)
            pairs += [(first + i, first + j) for i, j in item.pairs]
            reference.append(numbers[: len(item.answers)])
            examples += item.answers
        good = [n < item.num_good for item, _ in items for n in range(len(item.answers))]
        others = [(item.other, n[-1:]) for item, n in items if item.other is not None]
        return cls(
            Answers.of(examples, np.concatenate(reference), places[0]),
            torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            torch.tensor(good),
            torch.tensor([is_judged for item, _ in items for is_judged in item.judged]),
            Answers.of([e for e, _ in others], np.concatenate([n for _, n in others]), places[0])
            if others
            else None,
        )

    def to(self, device: torch.device) -> "Comparisons":
        """The same with every tensor on ``device``."""
        pairs, good, judged = (moved(t, device) for t in (self.pairs, self.good, self.judged))
        others = None if self.others is None else self.others.to(device)
        return Comparisons(self.answers.to(device), pairs, good, judged, others)

    def against(self, answers: Tensor, others: Tensor | None) -> "Comparisons":
        """The same with a reference's log-probabilities: [A] and, with others, theirs."""
        told = replace(self, answers=replace(self.answers, reference=answers))
        if self.others is None or others is None:
            return told
        return replace(told, others=replace(self.others, reference=others))

    def num_learned(self, config: PreferenceLossConfig) -> int:
        """What the loss is a mean over: pairs, or answers that are judged by themselves.

        It waits for a GPU that the comparisons are on.
        """
        return int(self.judged.sum()) if config.kind == "kto" else len(self.pairs)


@dataclass(frozen=True)
class PreferenceLoss:
    """The loss of comparisons; a ranking counts as all its pairs, each as a record of its own.

    Attributes:
        config: which loss.
        scale: one over the pairs, or with KTO the answers, of the global batch.
        kl: KTO's reference point, in the units of a log-ratio.
    """

    config: PreferenceLossConfig
    scale: Scale
    kl: float = 0.0

    def __call__(self, result: tuple[Tensor, Tensor], extra: Comparisons) -> tuple[Tensor, Metrics]:
        """Loss of a micro-batch and sums of its metrics; ``result`` is what LogProbs gives."""
        sums = extra.answers.sums(result[0])
        means = sums / extra.answers.targets
        log_ratios = log_ratios_of(self.config, extra.answers, sums)
        if self.config.kind == "kto":
            losses = self._of_answers(log_ratios, extra)
        else:
            losses = self._of_pairs(log_ratios, means, extra)
        loss = losses.sum() * self.scale
        return loss, self._metrics(log_ratios.detach(), means.detach(), extra)

    def _of_pairs(self, log_ratios: Tensor, means: Tensor, extra: Comparisons) -> Tensor:
        """Loss of each pair, [M]."""
        config, (better, worse) = self.config, extra.pairs.unbind(1)
        difference, beta = log_ratios[better] - log_ratios[worse], config.strength
        if config.kind == "orpo":
            return beta * odds_ratio_loss(means[better], means[worse]) - means[better]
        if config.kind == "simpo":
            losses = simpo_loss(difference, beta, config.margin, config.label_smoothing)
        elif config.kind == "ipo":
            losses = ipo_loss(difference, beta)
        else:
            losses = dpo_loss(difference, beta, config.label_smoothing)
        return losses - config.sft_coefficient * means[better]

    def _of_answers(self, log_ratios: Tensor, extra: Comparisons) -> Tensor:
        """Weighted loss of each answer that counts, 0 for the others: [A]."""
        config = self.config
        losses = kto_loss(log_ratios, extra.good, config.strength, self.kl)
        weights = extra.good * config.good_weight + ~extra.good * config.bad_weight
        return losses * weights * extra.judged

    def _metrics(self, log_ratios: Tensor, means: Tensor, extra: Comparisons) -> Metrics:
        config, (better, worse) = self.config, extra.pairs.unbind(1)
        rewards = config.strength * log_ratios
        margins = rewards[better] - rewards[worse]
        pairs = torch.ones_like(margins).sum()
        sums = {"pairs": pairs, "correct_pairs": (margins > 0).sum(), "margins": margins.sum()}
        if config.kind == "kto":
            good, bad = extra.good & extra.judged, ~extra.good & extra.judged
            sums |= {"chosen": good.sum(), "rejected": bad.sum()}
            sums |= {"chosen_rewards": (rewards * good).sum()}
            sums |= {"rejected_rewards": (rewards * bad).sum()}
        else:
            sums |= {"chosen": pairs, "rejected": pairs}
            sums |= {"chosen_rewards": rewards[better].sum()}
            sums |= {"rejected_rewards": rewards[worse].sum()}
        if config.sft_coefficient or config.kind == "orpo":
            sums["sft_loss"] = -means[better].sum() * self.scale
        return sums


def log_ratios_of(config: PreferenceLossConfig, answers: Answers, sums: Tensor) -> Tensor:
    """Policy against reference, where there is one, for each answer, [A]: of sums or of means."""
    ratios = sums - answers.reference if config.needs_reference else sums
    return ratios / answers.targets if config.takes_mean else ratios


def quotients(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics with means in place of the sums that they are of, where there is any to take."""
    sums = {name for pair in QUOTIENTS.values() for name in pair}
    means = {
        name: metrics[total] / metrics[count]
        for name, (total, count) in QUOTIENTS.items()
        if metrics[count]
    }
    return {name: value for name, value in metrics.items() if name not in sums} | means
