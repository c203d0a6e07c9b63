"""Lion: the sign of a momentum.

Source: Chen et al. 2023, arXiv:2302.06675, algorithm 2.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field

from megalite.config.section import Section
from megalite.layers.shards import local_part
from megalite.training.updates.rule import Rule, finite_gradient


class LionConfig(Section):
    """Lion's numbers. Chen et al. 2023, arXiv:2302.06675."""

    beta1: float = Field(
        0.9, ge=0, lt=1, description="share of the running mean in what the sign is taken of"
    )
    beta2: float = Field(0.99, ge=0, lt=1, description="decay of the gradients' running mean")


class Lion(Rule):
    """p -= lr (sign(b1 m + (1 - b1) g) + wd p); then m = b2 m + (1 - b2) g."""

    def __init__(
        self, groups: Sequence[dict[str, Any]], learning_rate: float, config: LionConfig
    ) -> None:
        """Make the state: ``exp_avg`` of each parameter."""
        super().__init__(groups, learning_rate)
        self._config = config
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"exp_avg": torch.zeros_like(parameter)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the parameters, element by element; nothing is communicated."""
        config = self._config
        for parameter, group in self._learned():
            goes = self._goes(parameter.device)
            rate, local = group["lr"] * goes, local_part(parameter)
            mean = local_part(self.state[parameter]["exp_avg"])
            gradient = finite_gradient(parameter, goes)
            direction = torch.lerp(mean, gradient, 1.0 - config.beta1).sign_()
            local.mul_(1.0 - rate * group["weight_decay"])
            local.addcmul_(direction, rate, value=-1.0)
            mean.lerp_(gradient, (1.0 - config.beta2) * goes)
