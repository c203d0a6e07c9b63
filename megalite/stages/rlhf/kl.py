"""The coefficient of the KL penalty, fixed or steered towards a target."""

import math
from typing import Literal

from pydantic import Field, model_validator

from megalite.config import Section
from megalite.config.course import Course, values_of
from megalite.errors import ConfigError

ERROR_LIMIT = 0.2


class KLConfig(Section):
    """How strongly a difference to the reference is penalised."""

    coefficient: Course = Field(
        0.05,
        description="penalty per nat of a response token; with a target, its first value; perhaps "
        'changing, such as { 0 = 0.2, "to 350 steps" = 0.005 }',
    )
    place: Literal["own", "reward", "loss"] = Field(
        "own",
        description="where the penalty is: in the rewards of tokens, or in the loss; own: in the "
        "loss for advantage.kind grpo and dr_grpo, else in the rewards",
    )
    target: float = Field(
        0.0, ge=0, description="nats per response that the coefficient aims at; 0: it stays fixed"
    )
    horizon: int = Field(
        10000,
        gt=0,
        description="responses over which the coefficient adapts; more: slower (a step changes it "
        "by a fifth at most)",
    )

    least: float = Field(
        0.0,
        ge=0,
        description="with a target, what the coefficient doesn't fall below while the policy is "
        "still near its start, where it would lose its hold",
    )

    @model_validator(mode="after")
    def _check(self) -> "KLConfig":
        if min(values_of(self.coefficient)) < 0:
            raise ConfigError(f"--kl.coefficient {self.coefficient}: must not be negative")
        if self.target > 0 and isinstance(self.coefficient, dict):
            raise ConfigError(
                f"--kl.target {self.target:g}: changes the coefficient, and kl.coefficient says "
                "how that changes: give one of them"
            )
        if self.target > 0 and self.coefficient == 0:
            raise ConfigError(
                f"--kl.coefficient 0: must be above 0 with kl.target {self.target:g}, as it adapts "
                "by factors: set its first value"
            )
        if self.least and not (self.target and self.least <= max(values_of(self.coefficient))):
            raise ConfigError(
                f"--kl.least {self.least:g}: bounds a coefficient that adapts from kl.coefficient "
                f"{self.coefficient}: needs kl.target, and must not be above it"
            )
        return self


def adapt(config: KLConfig, coefficient: float, kl: float, num_responses: int) -> float:
    """The coefficient after ``num_responses`` more responses with a mean of ``kl`` nats each.

    It is multiplied by at least 1 - ``ERROR_LIMIT`` and at most 1 + ``ERROR_LIMIT``, however many
    responses there are, so a penalty never becomes a reward; a ``kl`` of NaN leaves it. It stays
    at ``config.least`` or above: a policy that has not moved yet would wind it down to nothing,
    and then be far beyond the target before it is back.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    if config.target == 0 or math.isnan(kl):
        return coefficient
    error = min(max(kl / config.target - 1, -ERROR_LIMIT), ERROR_LIMIT)
    adapted = coefficient * (1 + error * min(num_responses / config.horizon, 1.0))
    return max(adapted, config.least)
