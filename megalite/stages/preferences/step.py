"""A policy that learns from preferences: a step of it, and its evaluation on held-out ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from megalite.data.loader import passes_over
from megalite.distributed.sums import all_reduce_sum, sum_count, sum_metrics
from megalite.engine.base import Judging
from megalite.engine.model import Model, Task
from megalite.models.outputs import LogProbs
from megalite.stages.preferences.config import PreferenceLossConfig
from megalite.stages.preferences.objective import (
    Comparisons,
    PreferenceLoss,
    log_ratios_of,
    quotients,
)
from megalite.stages.preferences.reference import WithReference, against
from megalite.training.learner import Learner


@dataclass(frozen=True)
class PreferenceLearner:
    """Learns from comparisons.

    Attributes:
        config: which loss.
        learner: of the policy.
        reference: says something of answers in every step, and doesn't learn; None: what it says
            stands beside them, or there is none.
    """

    config: PreferenceLossConfig
    learner: Learner
    reference: Judging | None = None

    @property
    def policy(self) -> Model:
        """The model that learns."""
        return self.learner.model

    def step(self, items: Sequence[Comparisons], consumed_samples: int) -> dict[str, float]:
        """Do one optimizer step on this rank's micro-batches; its metrics over the global batch.

        Args:
            items: with what the reference says, unless it is asked in every step.
            consumed_samples: of the steps before.

        Comm: as :meth:`megalite.training.learner.Learner.step`, and forward passes of the
        reference and for KTO of the policy.
        """
        told = self._told(items)
        kl = self._kl(told)
        metrics = self.learner.step(
            [(item.answers.batch, item) for item in told],
            lambda scale: Task(LogProbs(), PreferenceLoss(self.config, scale, kl)),
            sum(item.num_learned(self.config) for item in items),
            consumed_samples,
        )
        return quotients(metrics) | self._named(kl)

    def _told(self, items: Sequence[Comparisons]) -> list[Comparisons]:
        """The micro-batches on the device, with what the reference says."""
        if self.reference is not None:
            items = against(self.reference, items)
            self.reference.reshard()
        return [item.to(self.policy.mesh.device) for item in items]

    def _named(self, kl: float) -> dict[str, float]:
        return {"kto_kl": kl} if self.config.kind == "kto" else {}

    def _kl(self, items: Sequence[Comparisons], counted: Sequence[bool] = ()) -> float:
        """KTO's reference point: the mean log-ratio of answers to other prompts, at least 0.

        Comm: as forward passes, and all-reduces of two numbers over dp.
        """
        if self.config.kind != "kto":
            return 0.0
        mesh = self.policy.mesh
        others = [item.others for item in items if item.others is not None]
        results = self.policy.evaluate([answers.batch for answers in others], LogProbs())
        total, count = torch.zeros((), dtype=torch.float64, device=mesh.device), 0
        kept = counted or [True] * len(others)
        for answers, (log_probs, _), is_counted in zip(others, results, kept, strict=True):
            if is_counted:
                ratios = log_ratios_of(self.config, answers, answers.sums(log_probs))
                total, count = total + ratios.double().sum(), count + len(ratios)
        whole = float(all_reduce_sum(total, mesh.dp))
        return max(whole / max(sum_count(count, mesh.dp, mesh.device), 1.0), 0.0)

    def evaluate(self, dataset: WithReference, size: int) -> dict[str, float]:
        """Loss, accuracy, margin and rewards of all held-out comparisons, each counted once.

        Args:
            dataset: of them.
            size: most comparisons of a forward pass.

        Comm: as forward passes, and all-reduces over dp.
        """
        mesh = self.policy.mesh
        passes = passes_over(len(dataset), size, mesh.dp.rank, mesh.dp.size)
        items = [Comparisons.of([dataset[n] for n in p or [0]], p or [0]) for p in passes]
        told, counted = self._told(items), [bool(places) for places in passes]
        loss = PreferenceLoss(self.config, 1.0, self._kl(told, counted))
        results = self.policy.evaluate([item.answers.batch for item in told], LogProbs())
        sums: dict[str, torch.Tensor] = {}
        for item, result, is_counted in zip(told, results, counted, strict=True):
            value, metrics = loss(result, item)
            for name, x in {"loss": value, **metrics}.items():
                sums[name] = sums.get(name, 0.0) + x.double() * is_counted
        found = sum_metrics(sums, mesh.dp)
        learned = [i.num_learned(self.config) * c for i, c in zip(items, counted, strict=True)]
        whole = max(sum_count(sum(learned), mesh.dp, mesh.device), 1.0)
        found |= {name: found[name] / whole for name in {"loss", "sft_loss"} & found.keys()}
        return {
            f"heldout_{name}": value
            for name, value in (quotients(found) | self._named(loss.kl)).items()
        }
