"""An answer's score: those of reward models and by rule, joined to one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from megalite.data.chat.datasets import Question
from megalite.distributed.mesh import Mesh
from megalite.errors import ConfigError, DataError
from megalite.generation.prompts import Prompt
from megalite.stages.rules.config import GUARDED, GuardConfig
from megalite.stages.rules.scores import Rules

NO_GUARD = GuardConfig()


@dataclass(frozen=True)
class Scoring:
    """How scores come about in a run with several of them, or with reward functions.

    Attributes:
        mesh: of the processes that write answers.
        models: weights of the reward models' scores by their names, in the models' order.
        rules: the reward functions, or None.
        guard: the one of the models that alone scores some answers, if there is one.
    """

    mesh: Mesh
    models: Mapping[str, float]
    rules: Rules | None = None
    guard: GuardConfig = NO_GUARD

    def by_rule(
        self, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """Each function's scores by its name, [B] fp32. Comm: see :meth:`Rules.score`."""
        if self.rules is None:
            return {}
        scores = self.rules.score(prompts, answers, self.mesh)
        tensors = (torch.tensor(one, device=self.mesh.device) for one in scores)
        return dict(zip(self.rules.names, tensors, strict=True))

    def guarded(self, prompts: Sequence[Prompt]) -> Tensor | None:
        """Whose rows say that the guard alone scores their answers, [B] bool; None: no row does."""
        if not self.guard.column:
            return None
        said = [bool(_is_guarded(prompt, self.guard.column)) for prompt in prompts]
        return torch.tensor(said, device=self.mesh.device)

    def joined(
        self, of_models: Tensor, by_rule: Mapping[str, Tensor], guarded: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """One score of each answer.

        The weighted sum; with a guard its weighted score alone where it finds an answer bad or the
        row says so, and elsewhere the weighted sum of the others.

        Args:
            of_models: [B, M] fp32, a column for each reward model.
            by_rule: [B] fp32 each, by the names of reward functions.
            guarded: see :meth:`guarded`.

        Returns:
            [B] fp32, and its parts before their weights where they are several.

        Source: of the guard Touvron et al. 2023, arXiv:2307.09288, section 3.2.3.
        """
        weights = dict(self.models)
        if self.rules is not None:
            weights |= zip(self.rules.names, self.rules.weights, strict=True)
        parts = dict(by_rule) | dict(zip(self.models, of_models.unbind(1), strict=True))
        total = of_models.new_zeros(len(of_models))
        for name, score in parts.items():
            if name != self.guard.model:
                total = total + weights[name] * score
        if self.guard.model:
            own = parts[self.guard.model]
            alone = ~(own.sigmoid() >= self.guard.below)  # one that is not a number finds none good
            if guarded is not None:
                alone = alone | guarded
            total = torch.where(alone, weights[self.guard.model] * own, total)
            parts[GUARDED] = alone.float()
        return total, parts if len(parts) > 1 else {}


def check_guarded_rows(
    column: str, prompts: Iterable[Prompt], heldout: Iterable[Iterable[Prompt]] = ()
) -> None:
    """Refuse rows that don't say, as true or false, whether the guard alone scores them.

    Raises:
        ConfigError: no row that is learned from has the key.
        DataError: a row has another value there.
    """
    for prompt in chain.from_iterable(heldout):
        _is_guarded(prompt, column)
    if not any([_is_guarded(prompt, column) is not None for prompt in prompts]):
        raise ConfigError(f"--reward.guard.column {column}: no row of data.train has this key")


def _is_guarded(prompt: Prompt, column: str) -> bool | None:
    """What a row says; None where it says nothing."""
    assert isinstance(prompt, Question)
    value = prompt.row.get(column)
    if value is not None and not isinstance(value, bool):
        raise DataError(
            f"{prompt.where}: {column!r} is {value!r}; reward.guard.column must be true or false"
        )
    return value
