"""An answer's score: the reward model's, scores by rule, or their weighted sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalite.distributed.mesh import Mesh
from megalite.generation.prompts import Prompt
from megalite.stages.rules.scores import Rules

MODEL = "model"  # the reward model's name among the parts of a score


@dataclass(frozen=True)
class Scoring:
    """How scores come about in a run with reward functions.

    Attributes:
        rules: the functions.
        mesh: of the processes that write answers.
        model_weight: of the reward model's score; None: there is no reward model.
    """

    rules: Rules
    mesh: Mesh
    model_weight: float | None

    def by_rule(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Each function's scores by its name, [B] fp32. Comm: see :meth:`Rules.score`."""
        scores = self.rules.score(prompts, answers, self.mesh)
        tensors = (torch.tensor(one, device=self.mesh.device) for one in scores)
        return dict(zip(self.rules.names, tensors, strict=True))

    def joined(
        self, of_model: Tensor, by_rule: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all scores, [B] fp32, and its parts where they are several."""
        weights = dict(zip(self.rules.names, self.rules.weights, strict=True))
        parts = dict(by_rule)
        if self.model_weight is not None:
            weights[MODEL], parts[MODEL] = self.model_weight, of_model
        total = torch.zeros_like(of_model)
        for name, score in parts.items():
            total = total + weights[name] * score
        return total, parts if len(parts) > 1 else {}
