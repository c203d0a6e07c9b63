"""The coefficient of the KL penalty, fixed or steered towards a target."""

from pydantic import Field

from megalite.config import Section

ERROR_LIMIT = 0.2


class KLConfig(Section):
    """How strongly a difference to the reference is penalised."""

    coefficient: float = Field(
        0.05,
        ge=0,
        description="penalty per nat of a response token; with a target, its first value",
    )
    target: float = Field(
        0.0, ge=0, description="nats per response that the coefficient aims at; 0: it stays fixed"
    )
    horizon: int = Field(
        10000, gt=0, description="responses over which the coefficient adapts; more: slower"
    )


def adapt(config: KLConfig, coefficient: float, kl: float, num_responses: int) -> float:
    """The coefficient after ``num_responses`` more responses with a mean of ``kl`` nats each.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    if config.target == 0:
        return coefficient
    error = min(max(kl / config.target - 1, -ERROR_LIMIT), ERROR_LIMIT)
    return coefficient * (1 + error * num_responses / config.horizon)
