"""The coefficient of the KL penalty, fixed or steered towards a target."""

from pydantic import Field

from megalite.config import Section

ERROR_LIMIT = 0.2


class KLConfig(Section):
    """How strongly leaving the reference is penalised."""

    coefficient: float = Field(
        0.05, ge=0, description="Penalty a nat of a response token; the first value when adaptive."
    )
    target: float = Field(0.0, ge=0, description="Nats a response to steer towards; 0 is fixed.")
    horizon: int = Field(
        10000, gt=0, description="Responses over which the coefficient adapts; larger is slower."
    )


def adapt(config: KLConfig, coefficient: float, kl: float, num_responses: int) -> float:
    """The coefficient after ``num_responses`` more responses with a mean of ``kl`` nats each.

    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """
    if config.target == 0:
        return coefficient
    error = min(max(kl / config.target - 1, -ERROR_LIMIT), ERROR_LIMIT)
    return coefficient * (1 + error * num_responses / config.horizon)
